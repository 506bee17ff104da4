"""An answer on its way to a Telegram chat: in pieces, each of them once, also across crashes and other settings.

Telegram has nothing by which it knows a message that it was sent before. So nothing of an answer is on disk while a piece of it
may be under way, and what surely did not go out is put back: a crash in the middle of a try costs the rest of this answer, and
never sends anything twice.
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

#: What a try that is under way gets to end when the bot is to be another one, or nothing any more. An agent that is stopped gets three
#: seconds or so in all, and has open chats to end in them.
SEND_GRACE_S = 1.0

#: Tries at once.
SENDS_MAX = 16


class Unsent(msgspec.Struct, frozen=True):
    """What of an answer is not out yet."""

    chat_id: int
    text: str


def box_of_unsent(bot: str) -> str:
    """Where a bot's `Unsent` are kept: an inbox of their own, as putting something into the bot's own also says from which
    number on Telegram is to be asked next."""
    return f"{bot}:unsent"


class Deliveries:
    """What the deliveries of one bot have in common. `refusal`: why one of them does not get on, as the disk takes nothing."""

    def __init__(self, bot: str, api: TelegramApi, inbox: Inbox) -> None:
        self.bot = bot
        self.api = api
        self.refusal: DiskRefuses | None = None
        self._inbox = inbox
        self._free = asyncio.Semaphore(SENDS_MAX)

    async def deliver(self, box: str, update_id: int, unsent: Unsent) -> None:
        """Until Telegram has all of it, may have it, or will not have it. `box`: where it, or the question, is kept."""
        delivery = _Delivery(self, box, update_id, unsent)
        backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
        while not delivery.is_over:
            async with self._free:
                wait_s = await _to_its_end(delivery.go_on())
            if wait_s is None:
                backoff.reset()
            else:
                await asyncio.sleep(max(backoff.next_s(), wait_s))

    async def strike_out(self, box: str, update_id: int) -> bool:
        """False where the disk does not take it: then nothing must be sent."""
        try:
            await self._inbox.done(box, update_id)
        except sqlite3.OperationalError as error:
            self._note(error)
            self.refusal = DiskRefuses(str(error))
            return False
        self.refusal = None
        return True

    async def put_back(self, update_id: int, unsent: Unsent) -> bool:
        """False where the disk does not take it: then a crash would lose the answer."""
        contents = {update_id: msgspec.json.encode(unsent).decode()}
        try:
            await self._inbox.take_over(box_of_unsent(self.bot), contents, next_update=None)
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
        #: Where it is kept; None while it is not.
        self._box: str | None = box
        self._update_id = update_id
        self._unsent = unsent

    @property
    def is_over(self) -> bool:
        return self._box is None and not self._unsent.text

    async def go_on(self) -> float | None:
        """One try at the next piece. The seconds to wait before another one; None where this one is done with."""
        if self._box is not None and not await self._strike_out(self._box):
            return 0.0
        self._box = None
        wait_s = await self._send() if self._unsent.text else None
        if self._unsent.text:
            await self._put_back()
        return wait_s

    async def _strike_out(self, box: str) -> bool:
        try:
            return await self._deliveries.strike_out(box, self._update_id)
        except asyncio.CancelledError as cancelled:
            if cancelled.__cause__ is None:
                # It is struck out all the same, and nothing of it was sent.
                await self._put_back()
            raise

    async def _put_back(self) -> None:
        if self._unsent.text and await self._deliveries.put_back(self._update_id, self._unsent):
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
    """Wait for `work`. Whoever is cancelled meanwhile gives it a little longer; it is over, or cancelled itself, in any case."""
    working = asyncio.create_task(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working}, timeout=SEND_GRACE_S)
        raise
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
