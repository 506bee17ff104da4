"""The runtime itself: chats and the Telegram channel, run with one configuration at a time and changed while they go on."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import structlog

from hydracore.agent import VERSION
from hydracore.agent.chats import Ask, OpenChat
from hydracore.agent.errors import RuntimeFailed
from hydracore.agent.expressclaw.service import ChatService
from hydracore.agent.expressclaw.setup import Setup, make_setup
from hydracore.agent.expressclaw.store import Store
from hydracore.agent.messages import ReportedError, Versions
from hydracore.agent.runtime import RuntimeConfig

if TYPE_CHECKING:
    from hydracore.agent.expressclaw.telegram import TelegramChannel

log = structlog.get_logger()


class ExpressClaw:
    """Part of the agent's own process, so its version is the agent's. `store` outlives it."""

    def __init__(self, config: RuntimeConfig, *, store: Store) -> None:
        self._config = config
        self._store = store
        self._setup: Setup | None = None
        self._service = ChatService(store)
        self._telegram: TelegramChannel | None = None
        self._has_telegram = asyncio.Event()

    async def start(self) -> None:
        setup = make_setup(self._config)
        try:
            await self._service.recover(setup)
        except sqlite3.Error as error:
            log.exception("store_broke")
            raise RuntimeFailed("store_broke", "The conversations on disk cannot be read") from error
        self._adopt(setup)

    async def wait(self) -> None:
        """The work beside the chats, for ever."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._service.note_partials())
                tasks.create_task(self._run_telegram())
        except* Exception as failures:
            log.exception("runtime_broke")
            raise RuntimeFailed("runtime_broke", "The runtime broke; the agent's log has the reason") from failures

    async def stop(self) -> None:
        await self._service.stop()

    def apply(self, config: RuntimeConfig) -> bool:
        self._adopt(make_setup(config))
        return True

    def drain(self) -> None:
        self._service.drain()

    async def idle(self) -> None:
        await self._service.idle()

    def open_chat(self, ask: Ask) -> OpenChat:
        assert self._setup is not None, "the runtime was not started"
        return self._service.open(ask, self._setup)

    @property
    def active_connections(self) -> int:
        return self._service.open_count

    @property
    def skills_loaded(self) -> tuple[str, ...]:
        return () if self._setup is None else tuple(skill.id for skill in self._setup.skills)

    @property
    def versions(self) -> Versions:
        return Versions(agent=VERSION)

    @property
    def connections(self) -> Mapping[str, str]:
        return {"telegram": "off" if self._telegram is None else self._telegram.state}

    @property
    def error(self) -> ReportedError | None:
        return None if self._telegram is None else self._telegram.error

    def _adopt(self, setup: Setup) -> None:
        self._setup = setup
        self._store.ledger.rebase(setup.digest)
        telegram = setup.document.telegram
        if self._telegram is None and telegram.bot_token:
            # Most agents have no bot, and spare their start what this would cost it.
            from hydracore.agent.expressclaw.telegram import TelegramChannel  # noqa: PLC0415 - see above

            self._telegram = TelegramChannel(self._store.inbox, open_chat=self.open_chat)
            self._has_telegram.set()
        if self._telegram is not None:
            self._telegram.use(telegram)

    async def _run_telegram(self) -> NoReturn:
        await self._has_telegram.wait()
        assert self._telegram is not None, "the event is set with it"
        await self._telegram.run()
