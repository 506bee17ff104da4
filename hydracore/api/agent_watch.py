"""Waiting for an agent that is silent: find out whether it is gone, and keep the caller's connection alive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final, NoReturn, TypeVar

from litestar.types import Send

from hydracore.agent_client import AgentClientError
from hydracore.waiting import first_of

T = TypeVar("T")

#: Raises `AgentClientError` where waiting is of no use.
AgentCheck = Callable[[], Awaitable[None]]

#: Seconds of silence before the agent is checked. Proxies cut connections that are silent for 30 s or 60 s.
SILENCE_S: Final = 15.0

#: A comment, which clients of event streams ignore (https://html.spec.whatwg.org/multipage/server-sent-events.html).
PING: Final = b": ping\n\n"

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # Asks proxies not to buffer the answer.
    (b"x-accel-buffering", b"no"),
]


async def run_watched(work: Coroutine[Any, Any, T], *, watch: Coroutine[Any, Any, NoReturn]) -> T:
    """The result of `work`, unless `watch` raises before. Both have ended when this returns."""
    working, watching = asyncio.create_task(work), asyncio.create_task(watch)
    # Also where this is cancelled, so that connections to an agent are closed before this returns.
    by_themselves = await first_of(working, watching)
    return (working if working in by_themselves else watching).result()


async def check_repeatedly(check: AgentCheck) -> NoReturn:
    """Call `check` every `SILENCE_S`."""
    while True:
        await asyncio.sleep(SILENCE_S)
        await check()


class EventStream:
    """An answer of server-sent events. It begins with the first event; until then, another answer is possible."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._write_lock = asyncio.Lock()
        self._now_s = asyncio.get_running_loop().time
        self._written_s = self._now_s()
        self.is_open = False
        #: What the last call of `write` has sent.
        self.last = b""

    async def write(self, events: bytes) -> None:
        """Send whole events. If this is cancelled, nothing is sent in part."""
        await self._write(events)
        self.last = events

    async def _write(self, chunk: bytes) -> None:
        async with self._write_lock:
            if not self.is_open:
                await self._send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": [*_HEADERS]})
                self.is_open = True
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
            self._written_s = self._now_s()

    async def keep_alive(self, check: AgentCheck) -> NoReturn:
        """Ping whenever nothing was written for `SILENCE_S`, as long as `check` does not raise."""
        while True:
            left_s = self._written_s + SILENCE_S - self._now_s()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            written_s = self._written_s
            try:
                await check()
            except AgentClientError:
                # Events that arrived meanwhile prove that the agent is alive.
                if self._written_s == written_s:
                    raise
            else:
                await self._write(PING)

    async def close(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
