"""Waiting for an agent that says nothing: told from one that is gone, and not left without a sign towards the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final, TypeVar

from litestar.types import Send

T = TypeVar("T")

#: How long nothing may come before somebody looks what is the matter. Proxies cut what is silent for 30 s or 60 s.
SILENCE_S: Final = 15.0

#: A comment, which clients of event streams pass over (https://html.spec.whatwg.org/multipage/server-sent-events.html).
PING: Final = b": ping\n\n"

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # Proxies that gather an answer before they pass it on are asked not to.
    (b"x-accel-buffering", b"no"),
]


async def outcome(work: Awaitable[T], *, on_silence: Callable[[], Awaitable[None]]) -> T:
    """What `work` comes to. For each `SILENCE_S` without it `on_silence` is called; what that raises ends the work."""
    working = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({working}, timeout=SILENCE_S))[0]:
            await on_silence()
        return await working
    finally:
        # Also when nobody waits any more: whatever is open to an agent is closed before this returns.
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


class EventStream:
    """An answer of server-sent events that opens with the first of them: until then it may still become another answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_open = False

    async def write(self, piece: bytes) -> None:
        """Whole events, or a `PING`."""
        if not self.is_open:
            self.is_open = True
            await self._send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": [*_HEADERS]})
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def close(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
