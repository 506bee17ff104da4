"""The outermost layer: every request gets an id, and every answer carries it, with headers that browsers heed."""

from __future__ import annotations

import os
from typing import Final

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from hydracore.agent.transport import REQUEST_ID
from hydracore.auth import HEADER_BLANKS

#: Answers are JSON about somebody's instances: not to be stored, guessed at, or framed.
_SECURITY_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


class Edge:
    """Wraps the application. The id is in `scope["state"]["request_id"]` and in every log line of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope["headers"])
        scope.setdefault("state", {})["request_id"] = request_id
        bind_contextvars(request_id=request_id)
        added = ((b"x-request-id", request_id.encode()), *_SECURITY_HEADERS)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _request_id(headers: list[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value := value.strip(HEADER_BLANKS)):
            return value.decode()
    return os.urandom(16).hex()
