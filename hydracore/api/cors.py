"""Which other origins may use the API from a browser (the CORS protocol of https://fetch.spec.whatwg.org).

Callers send a token in a header and never a cookie. So no credentials of the browser are involved, and credentials mode
is not offered.
"""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus
from typing import Final

import msgspec
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from hydracore.api.operations import Answer

#: How long a browser may cache a preflight answer.
MAX_AGE_S: Final = 600

_METHODS: Final = b"GET, POST, PATCH, DELETE"
#: The headers that operations read (a test compares). `Accept` and a few more are always allowed.
_REQUEST_HEADERS: Final = b"authorization, content-type, idempotency-key, if-match, x-api-key, x-request-id, x-user-id"
#: The headers of an answer that a page may read, besides its type and length.
_ANSWER_HEADERS: Final = b"link, retry-after, x-request-id"
#: Answers differ by origin, which caches must know.
_VARY: Final = (b"vary", b"origin")


class Cors:
    """Wraps the application. `origins`: in the form that browsers send, or `*`."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._any = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"")
        allowed = self._allowed(origin)
        if origin and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            await _preflight(allowed)(scope, receive, send)
            return
        added = [_VARY]
        if allowed:
            added += [*allowed, (b"access-control-expose-headers", _ANSWER_HEADERS)]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _allowed(self, origin: bytes) -> tuple[tuple[bytes, bytes], ...]:
        if not origin or not (self._any or origin in self._origins):
            return ()
        return ((b"access-control-allow-origin", b"*" if self._any else origin),)


def _preflight(allowed: tuple[tuple[bytes, bytes], ...]) -> Answer:
    """The answer to a browser's preflight request. It does not reach the application."""
    if not allowed:
        body = msgspec.json.encode({"detail": "This origin may not use the API"})
        return Answer(HTTPStatus.FORBIDDEN, body, (_VARY,))
    headers = (
        *allowed,
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", _REQUEST_HEADERS),
        (b"access-control-max-age", b"%d" % MAX_AGE_S),
        _VARY,
    )
    return Answer(HTTPStatus.NO_CONTENT, b"", headers)
