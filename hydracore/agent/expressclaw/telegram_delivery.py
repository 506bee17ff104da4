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
from hydracore.agent.errors import DiskRefuses
from hydracore.agent.expressclaw.inbox import Inbox
from hydracore.agent.expressclaw.telegram_api import (
    TEXT_MAX_CHARS,
    TelegramApi,
    TelegramAway,
    TelegramBusy,
    TelegramRefused,
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


class Unsent(msgspec.Struct, frozen=True):
    """The part of an answer that is not sent yet."""

    chat_id: int
    text: str


def box_of_unsent(bot: str) -> str:
    """The name of the inbox with a bot's `Unsent`. They have one of their own, because storing
    updates in the bot's inbox also sets the offset of its next poll."""
    return f"{bot}:unsent"


class Deliveries:
    """The deliveries of one bot. `refusal`: the refusal of the disk that holds one of them up, or None."""

    def __init__(self, bot: str, api: TelegramApi, inbox: Inbox) -> None:
        self.bot = bot
        self.api = api
        self.refusal: DiskRefuses | None = None
        self._inbox = inbox
        self._free = asyncio.Semaphore(SENDS_MAX)

    async def deliver(self, box: str, update_id: int, unsent: Unsent) -> None:
        """Send `unsent`, with retries, until each piece of it was sent, may have been sent, or was refused.

        `box`: the inbox that has `unsent`, or the question that it answers.
        """
        delivery = _Delivery(self, box, update_id, unsent)
        backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
        while not delivery.is_over:
            async with self._free:
                wait_s = await _to_its_end(delivery.go_on())
            if wait_s is None:
                backoff.reset()
            else:
                await asyncio.sleep(max(backoff.next_s(), wait_s))

    async def delete(self, box: str, update_id: int) -> bool:
        """Delete it from disk. Returns False if the disk refuses: then nothing must be sent."""
        try:
            await self._inbox.delete(box, update_id)
        except sqlite3.OperationalError as error:
            self._note(error)
            self.refusal = DiskRefuses(str(error))
            return False
        self.refusal = None
        return True

    async def restore(self, update_id: int, unsent: Unsent) -> bool:
        """Store it again. Returns False if the disk refuses: then a crash would lose the answer."""
        contents = {update_id: msgspec.json.encode(unsent).decode()}
        try:
            await self._inbox.store(box_of_unsent(self.bot), contents, next_update=None)
        except sqlite3.OperationalError as error:
            self._note(error)
            return False
        return True

    def _note(self, error: sqlite3.OperationalError) -> None:
        if self.refusal is None:
            _log.warning("telegram_inbox_refused", bot=self.bot, reason=str(error))


class _Delivery:
    def __init__(self, deliveries: Deliveries, box: str, update_id: int, unsent: Unsent) -> None:
        self._deliveries = deliveries
        #: The inbox that has it on disk; None while none has.
        self._box: str | None = box
        self._update_id = update_id
        self._unsent = unsent

    @property
    def is_over(self) -> bool:
        return self._box is None and not self._unsent.text

    async def go_on(self) -> float | None:
        """Try once to send the next piece. Returns the seconds to wait before trying again, None if it is done with."""
        if self._box is not None and not await self._delete(self._box):
            return 0.0
        self._box = None
        wait_s = await self._send() if self._unsent.text else None
        if self._unsent.text:
            await self._restore()
        return wait_s

    async def _delete(self, box: str) -> bool:
        try:
            return await self._deliveries.delete(box, self._update_id)
        except asyncio.CancelledError as cancelled:
            if cancelled.__cause__ is None:
                # It was deleted all the same (see `Database.run`), and nothing of it was sent.
                await self._restore()
            raise

    async def _restore(self) -> None:
        if self._unsent.text and await self._deliveries.restore(self._update_id, self._unsent):
            self._box = box_of_unsent(self._deliveries.bot)

    async def _send(self) -> float | None:
        piece, rest = self._unsent.text[:TEXT_MAX_CHARS], self._unsent.text[TEXT_MAX_CHARS:]
        try:
            await self._deliveries.api.send(self._unsent.chat_id, piece)
        except TelegramBusy as error:
            return error.retry_after_s
        except TelegramRefused:
            # The bot may get another token.
            return 0.0
        except TelegramAway as error:
            if error.again:
                return 0.0
            _log.warning("telegram_answer_lost", bot=self._deliveries.bot)
        self._unsent = msgspec.structs.replace(self._unsent, text=rest)
        return None


async def _to_its_end(work: Coroutine[None, None, T]) -> T:
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
