"""Waiting for an agent that says nothing: told from one that is gone, and not left without a sign towards the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final, NoReturn, TypeVar

from litestar.types import Send

from hydracore.vps import VpsError
from hydracore.waiting import first_of

T = TypeVar("T")

#: Raises `VpsError` where there is nobody to wait for.
Look = Callable[[], Awaitable[None]]

#: How long nothing may come before somebody looks what is the matter. Proxies cut what is silent for 30 s or 60 s.
SILENCE_S: Final = 15.0

#: A comment, which clients of event streams pass over (https://html.spec.whatwg.org/multipage/server-sent-events.html).
PING: Final = b": ping\n\n"

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # Proxies that gather an answer before they pass it on are asked not to.
    (b"x-accel-buffering", b"no"),
]


async def outcome(work: Coroutine[Any, Any, T], *, watch: Coroutine[Any, Any, NoReturn]) -> T:
    """What `work` comes to, unless `watch` raises before that. Neither goes on when this returns."""
    working, watching = asyncio.create_task(work), asyncio.create_task(watch)
    # Also when nobody waits any more: whatever is open to an agent is closed before this returns.
    by_themselves = await first_of(working, watching)
    return (working if working in by_themselves else watching).result()


async def keep_looking(look: Look) -> NoReturn:
    """Look every `SILENCE_S` whether there is somebody to wait for."""
    while True:
        await asyncio.sleep(SILENCE_S)
        await look()


class EventStream:
    """An answer of server-sent events that opens with the first of them: until then it may still become another answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._turn = asyncio.Lock()
        self._now_s = asyncio.get_running_loop().time
        self._written_s = self._now_s()
        self.is_open = False
        #: The events that were written last.
        self.last = b""

    async def write(self, events: bytes) -> None:
        """Whole events. Cancelling this leaves nothing half written."""
        await self._write(events)
        self.last = events

    async def _write(self, piece: bytes) -> None:
        async with self._turn:
            if not self.is_open:
                await self._send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": [*_HEADERS]})
                self.is_open = True
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            self._written_s = self._now_s()

    async def keep_open(self, look: Look) -> NoReturn:
        """Ping whenever nothing was written for `SILENCE_S` and a `look` finds somebody to wait for."""
        while True:
            left_s = self._written_s + SILENCE_S - self._now_s()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            written_s = self._written_s
            try:
                await look()
            except VpsError:
                # Words that came meanwhile say more.
                if self._written_s == written_s:
                    raise
            else:
                await self._write(PING)

    async def close(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
