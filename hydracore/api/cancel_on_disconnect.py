"""Cancels the work for an answer when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from litestar.types import Receive, Scope, Send

from hydracore.api.errors import Interrupted
from hydracore.waiting import first_of


class CancelOnDisconnect:
    """An ASGI application that does `work` and cancels it when the client disconnects.

    `work` sends the answer itself. What it raises before the first message is answered like any other error. Raises
    `Interrupted` where the server stops before `work` has ended.
    """

    def __init__(self, work: Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]) -> None:
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        working = asyncio.create_task(self._work(scope, receive, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            # `first_of` also ends both tasks when the server stops, so that connections to an agent are closed before
            # this returns.
            if working in await first_of(working, leaving):
                working.result()
        except asyncio.CancelledError:
            raise Interrupted from None


async def _disconnected(receive: Receive) -> None:
    """Wait until the client has left. Its body must have been read to the end."""
    while (await receive())["type"] != "http.disconnect":
        pass
