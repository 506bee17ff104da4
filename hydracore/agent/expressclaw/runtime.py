"""The built-in runtime: runs chats, Telegram and webhooks, and switches their configuration while they run."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import structlog

from hydracore.agent import VERSION
from hydracore.agent.chats import OpenChat, Question
from hydracore.agent.errors import RuntimeFailed, StateDamaged
from hydracore.agent.expressclaw.connections import OFF
from hydracore.agent.expressclaw.service import ChatService
from hydracore.agent.expressclaw.setup import Setup, make_setup
from hydracore.agent.expressclaw.store import Store
from hydracore.agent.expressclaw.webhooks import Webhooks
from hydracore.agent.messages import Ignored, ReportedError, Versions
from hydracore.agent.runtime import RuntimeConfig

if TYPE_CHECKING:
    from hydracore.agent.expressclaw.telegram import TelegramChannel

_log = structlog.get_logger(__name__)


class ExpressClaw:
    """It runs in the agent's own process, so its version is the agent's. `store` outlives it."""

    def __init__(self, config: RuntimeConfig, *, store: Store) -> None:
        self._config = config
        self._store = store
        self._setup: Setup | None = None
        self._service = ChatService(store)
        self._telegram: TelegramChannel | None = None
        self._has_telegram = asyncio.Event()
        self._webhooks = Webhooks(store.notices)

    async def start(self) -> None:
        setup = make_setup(self._config)
        try:
            await self._service.recover(setup)
        except sqlite3.Error as error:
            _log.exception("store_broke")
            raise RuntimeFailed("store_broke", "The conversations on disk cannot be read") from error
        self._adopt(setup)

    async def wait_until_stopped(self) -> None:
        """Do the work beside the chats, for ever. Raises `RuntimeFailed`, or an exception group of `StateDamaged`."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._service.save_partials_periodically())
                tasks.create_task(self._run_telegram())
                tasks.create_task(self._webhooks.run())
        except* StateDamaged:
            # The next start would meet the same damaged page. Only a person can mend it.
            raise
        except* Exception as failures:
            _log.exception("runtime_broke")
            raise RuntimeFailed("runtime_broke", "The runtime failed; see the agent's log for the reason") from failures

    async def stop(self) -> None:
        await self._service.stop()

    def apply(self, config: RuntimeConfig) -> bool:
        self._adopt(make_setup(config))
        return True

    def drain(self) -> None:
        self._service.drain()

    async def wait_until_idle(self) -> None:
        await self._service.wait_until_idle()

    async def interrupt_chats(self) -> None:
        await self._service.interrupt_chats()

    def open_chat(self, question: Question) -> OpenChat:
        assert self._setup is not None, "the runtime was not started"
        return self._service.open(question, self._setup)

    @property
    def active_connections(self) -> int:
        return self._service.open_count

    @property
    def skills_loaded(self) -> tuple[str, ...]:
        return () if self._setup is None else tuple(skill.id for skill in self._setup.features.skills)

    @property
    def workflows_loaded(self) -> tuple[str, ...]:
        return () if self._setup is None else tuple(workflow.slug for workflow in self._setup.features.workflows)

    @property
    def ignored(self) -> tuple[Ignored, ...]:
        return () if self._setup is None else self._setup.features.ignored

    @property
    def versions(self) -> Versions:
        return Versions(agent=VERSION)

    @property
    def connections(self) -> Mapping[str, str]:
        states = {"telegram": OFF if self._telegram is None else self._telegram.state}
        if self._setup is not None:
            states |= self._setup.features.states
            if self._setup.document.model_policy.embedding_model is not None:
                states["memory"] = self._service.recall.state
        return states | dict(self._webhooks.states)

    @property
    def error(self) -> ReportedError | None:
        parts = (self._telegram, self._webhooks, self._service.recall)
        return next((part.error for part in parts if part is not None and part.error is not None), None)

    def _adopt(self, setup: Setup) -> None:
        self._setup = setup
        self._store.ledger.set_spend_base(setup.digest)
        features = setup.features
        if self._telegram is None and features.bot.is_wanted:
            # Imported only here, as most agents have no bot, and the import would slow down their start.
            from hydracore.agent.expressclaw.telegram import TelegramChannel  # noqa: PLC0415 - see above

            self._telegram = TelegramChannel(self._store.inbox, open_chat=self.open_chat)
            self._has_telegram.set()
        if self._telegram is not None:
            self._telegram.use(features.bot)
        self._webhooks.use(features.webhooks)
        self._service.recall.use(setup.document.model_policy.embedding_model)

    async def _run_telegram(self) -> NoReturn:
        await self._has_telegram.wait()
        assert self._telegram is not None, "the event is set with it"
        await self._telegram.run()
