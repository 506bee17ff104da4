"""Sends an answer to a Telegram chat: in pieces, none of them twice, also across crashes and changes of settings.

Telegram does not recognize a message that is sent twice. So an answer is deleted from disk before
each try to send a piece, and what surely was not sent is put back afterwards. A crash in the middle
of a try loses the rest of this answer, and never sends anything twice.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine
from typing import TypeVar

import msgspec
import structlog

from hydracore.agent.backoff import Backoff
from hydracore.agent.errors import DiskWriteFailed
from hydracore.agent.expressclaw.inbox import Inbox
from hydracore.agent.expressclaw.telegram_api import (
    TEXT_CHARS_MAX,
    TelegramApi,
    TelegramBusy,
    TelegramRefused,
    TelegramUnavailable,
)

T = TypeVar("T")
_log = structlog.get_logger(__name__)

RETRY_BASE_S = 0.5
RETRY_CAP_S = 60.0

#: Seconds that a try under way gets to end when the bot changes or stops. An agent that is stopped
#: has some three seconds in all, and has to end its open chats in them.
SEND_GRACE_S = 1.0

#: The most tries at once.
SENDS_MAX = 16


class UnsentAnswer(msgspec.Struct, frozen=True):
    """The part of an answer that is not sent yet."""

    chat_id: int
    text: str


def unsent_inbox(bot: str) -> str:
    """The id of the inbox that stores a bot's `UnsentAnswer`s. It is separate from the bot's inbox,
    because storing updates there also sets the offset of the bot's next poll."""
    return f"{bot}:unsent"


class Deliveries:
    """The deliveries of one bot. `disk_failure`: the failed write that holds one of them up, or None."""

    def __init__(self, bot: str, api: TelegramApi, inbox: Inbox) -> None:
        self.bot = bot
        self.api = api
        self.disk_failure: DiskWriteFailed | None = None
        self._inbox = inbox
        self._send_slots = asyncio.Semaphore(SENDS_MAX)

    async def deliver(self, inbox_id: str, update_id: int, unsent: UnsentAnswer) -> None:
        """Send `unsent`, with retries, until each piece of it was sent, may have been sent, or was refused.

        `inbox_id`: the inbox that stores `unsent`, or the update that it answers.
        """
        delivery = _Delivery(self, inbox_id, update_id, unsent)
        backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
        while not delivery.is_over:
            async with self._send_slots:
                wait_s = await _finish_within_grace(delivery.send_next_piece())
            if wait_s is None:
                backoff.reset()
            else:
                await asyncio.sleep(max(backoff.next_wait_s(), wait_s))

    async def delete(self, inbox_id: str, update_id: int) -> bool:
        """Delete it from disk. Returns False if the disk refuses: then nothing must be sent."""
        try:
            await self._inbox.delete(inbox_id, update_id)
        except sqlite3.OperationalError as error:
            self._note(error)
            self.disk_failure = DiskWriteFailed(str(error))
            return False
        self.disk_failure = None
        return True

    async def restore(self, update_id: int, unsent: UnsentAnswer) -> bool:
        """Store it again. Returns False if the disk refuses: then a crash would lose the answer."""
        contents = {update_id: msgspec.json.encode(unsent).decode()}
        try:
            await self._inbox.store(unsent_inbox(self.bot), contents, next_update=None)
        except sqlite3.OperationalError as error:
            self._note(error)
            return False
        return True

    def _note(self, error: sqlite3.OperationalError) -> None:
        if self.disk_failure is None:
            _log.warning("telegram_inbox_refused", bot=self.bot, reason=str(error))


class _Delivery:
    def __init__(self, deliveries: Deliveries, inbox_id: str, update_id: int, unsent: UnsentAnswer) -> None:
        self._deliveries = deliveries
        #: The inbox that stores it; None while it is not on disk.
        self._inbox_id: str | None = inbox_id
        self._update_id = update_id
        self._unsent = unsent

    @property
    def is_over(self) -> bool:
        return self._inbox_id is None and not self._unsent.text

    async def send_next_piece(self) -> float | None:
        """Try once to send the next piece. Returns the seconds to wait before trying again, None if it is done with."""
        if self._inbox_id is not None and not await self._delete(self._inbox_id):
            return 0.0
        self._inbox_id = None
        wait_s = await self._send() if self._unsent.text else None
        if self._unsent.text:
            await self._restore()
        return wait_s

    async def _delete(self, inbox_id: str) -> bool:
        try:
            return await self._deliveries.delete(inbox_id, self._update_id)
        except asyncio.CancelledError as cancelled:
            if cancelled.__cause__ is None:
                # It was deleted all the same (see `Database.run`), and nothing of it was sent.
                await self._restore()
            raise

    async def _restore(self) -> None:
        if self._unsent.text and await self._deliveries.restore(self._update_id, self._unsent):
            self._inbox_id = unsent_inbox(self._deliveries.bot)

    async def _send(self) -> float | None:
        piece, rest = self._unsent.text[:TEXT_CHARS_MAX], self._unsent.text[TEXT_CHARS_MAX:]
        try:
            await self._deliveries.api.send(self._unsent.chat_id, piece)
        except TelegramBusy as error:
            return error.retry_after_s
        except TelegramRefused:
            # The bot may get another token.
            return 0.0
        except TelegramUnavailable as error:
            if error.is_unsent:
                return 0.0
            _log.warning("telegram_answer_lost", bot=self._deliveries.bot)
        self._unsent = msgspec.structs.replace(self._unsent, text=rest)
        return None


async def _finish_within_grace(work: Coroutine[None, None, T]) -> T:
    """Wait for `work`. If this is cancelled, `work` gets `SEND_GRACE_S` to end, and is cancelled after that."""
    working = asyncio.create_task(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working}, timeout=SEND_GRACE_S)
        raise
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
