"""The Telegram channel: stores the messages that people write to a bot, has them answered, and sends each answer once.

An update is on disk before Telegram is told to forget it, and is deleted right before its answer is sent. So
after a crash an update without an answer is answered, and an answer that may have been sent is not sent again.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import NoReturn

import structlog

from hydracore.agent.backoff import Backoff
from hydracore.agent.chats import OpenChat, Question
from hydracore.agent.errors import AgentError, DiskWriteFailed
from hydracore.agent.expressclaw.connections import CONNECTED, OFF, error_reason, error_state
from hydracore.agent.expressclaw.document import Telegram
from hydracore.agent.expressclaw.features import Bot
from hydracore.agent.expressclaw.inbox import Inbox
from hydracore.agent.expressclaw.telegram_answers import TelegramAnswers
from hydracore.agent.expressclaw.telegram_api import (
    POLL_S,
    TelegramApi,
    TelegramBusy,
    TelegramError,
    TelegramRefused,
    Update,
    bot_id,
)
from hydracore.agent.expressclaw.telegram_delivery import RETRY_BASE_S, RETRY_CAP_S, unsent_inbox
from hydracore.agent.messages import ReportedError
from hydracore.waiting import run_until

_log = structlog.get_logger(__name__)

#: Seconds between two looks for room while too many messages wait. Telegram is not polled meanwhile.
BACKLOG_FULL_WAIT_S = 1.0


class TelegramChannel:
    """Set the bot with `use`, and run `run` as a task. `open_chat` raises `ChatError`."""

    def __init__(self, inbox: Inbox, *, open_chat: Callable[[Question], OpenChat]) -> None:
        self._inbox = inbox
        self._open_chat = open_chat
        self._wanted = Bot(Telegram())
        self._changed = asyncio.Event()
        self._state = OFF
        self._answers: TelegramAnswers | None = None

    def use(self, bot: Bot) -> None:
        """Run this bot from now on."""
        if bot != self._wanted:
            self._wanted = bot
            self._changed.set()

    @property
    def state(self) -> str:
        """`off`, `connected` or `error: ...`."""
        refusal = None if self._answers is None else self._answers.disk_failure
        return self._state if refusal is None else error_state(refusal)

    @property
    def error(self) -> ReportedError | None:
        reason = error_reason(self.state)
        return None if reason is None else ReportedError(code="telegram_failed", message=reason)

    async def run(self) -> NoReturn:
        while True:
            self._changed.clear()
            await run_until(self._changed, self._run_bot(self._wanted))

    async def _run_bot(self, wanted: Bot) -> None:
        """Run one bot until this is cancelled, as another bot is wanted."""
        self._state = OFF
        token = wanted.telegram.bot_token
        if wanted.refusal_reason is not None:
            self._note(TelegramRefused(wanted.refusal_reason))
        elif token:
            bot = bot_id(token)
            if bot is not None:
                await self._poll(bot, TelegramApi(token=token, base_url=wanted.telegram.base_url), wanted)
            self._note(TelegramRefused("The bot token does not have the form of a Telegram bot token"))
        await asyncio.Event().wait()

    async def _poll(self, bot: str, api: TelegramApi, wanted: Bot) -> NoReturn:
        backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
        answers = self._answers = TelegramAnswers(
            bot, api, self._inbox, self._open_chat, allowed=wanted.allowed_user_ids
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                has_unsent = True
                while True:
                    try:
                        if has_unsent:
                            answers.resend_unsent(tasks, await self._inbox.stored_updates(unsent_inbox(bot)))
                            has_unsent = False
                        if answers.has_room:
                            await self._poll_once(bot, api)
                        else:
                            await asyncio.sleep(BACKLOG_FULL_WAIT_S)
                        answers.answer_new(tasks, await self._inbox.stored_updates(bot))
                        backoff.reset()
                    except TelegramError as error:
                        self._note(error)
                        asked_s = error.retry_after_s if isinstance(error, TelegramBusy) else 0.0
                        await asyncio.sleep(max(backoff.next_wait_s(), asked_s))
                    except sqlite3.OperationalError as error:
                        # Telegram keeps what the disk did not take, and the next poll brings it again.
                        self._note(DiskWriteFailed(str(error)))
                        await asyncio.sleep(backoff.next_wait_s())
        finally:
            self._answers = None
            await api.aclose()

    async def _poll_once(self, bot: str, api: TelegramApi) -> None:
        """Poll Telegram once, and store what is new. Raises `TelegramError`."""
        offset = await self._inbox.next_update(bot)
        # A poll that tries the token, or has Telegram forget something, does not wait.
        wait_s = POLL_S if self._state == CONNECTED and offset is None else 0
        updates = await api.updates(offset, wait_s=wait_s)
        self._state = CONNECTED
        if updates or offset is not None:
            await self._store_updates(bot, updates)

    async def _store_updates(self, bot: str, updates: list[Update]) -> None:
        """Store these updates, and have Telegram forget them with the next poll.

        After that poll no offset is kept: after a week without updates Telegram draws a new number,
        perhaps a lower one, and by the old offset it would forget updates that it has not sent yet.
        """
        # The messages are not parsed yet, and need not be valid UTF-8.
        contents = {
            update.update_id: bytes(update.message).decode(errors="replace") for update in updates if update.message
        }
        next_update = max((update.update_id for update in updates), default=-1) + 1
        await self._inbox.store(bot, contents, next_update=next_update or None)

    def _note(self, error: AgentError) -> None:
        state = error_state(error)
        if state != self._state:
            _log.warning("telegram_failed", reason=str(error))
        self._state = state
