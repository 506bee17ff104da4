"""The outermost layer: gives every request an id, and adds that and security headers to every answer."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from hydracore.api.operations import Answer
from hydracore.auth import HEADER_BLANKS
from hydracore.http_protocol import common_headers, new_request_id
from hydracore.transport import REQUEST_ID

#: The most characters of a path. No operation has a longer one. Litestar caches the routes of the last thousand paths,
#: of unauthenticated requests too: with request heads of 64 KiB these could take half a gigabyte.
PATH_LENGTH_MAX: Final = 1_024
_TOO_LONG: Final = Answer(HTTPStatus.REQUEST_URI_TOO_LONG, b'{"detail":"URI Too Long"}')

#: Refuses expectations that are not supported, so that no client relies on them (RFC 9110, section 10.1.1).
_EXPECTATION_FAILED: Final = Answer(
    HTTPStatus.EXPECTATION_FAILED, b'{"detail":"No expectation but 100-continue is met"}'
)


class Edge:
    """Wraps the application. The id is in `scope["state"]["request_id"]` and in every log line of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, expects = _id_and_expectation(scope["headers"])
        scope.setdefault("state", {})["request_id"] = request_id
        # A pipelined request starts in the context of the request before it, with what was bound there.
        clear_contextvars()
        bind_contextvars(request_id=request_id)
        added = common_headers(request_id)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._choose_app(scope, expects)(scope, receive, send_with_headers)

    def _choose_app(self, scope: Scope, expects: bytes) -> ASGIApp:
        if len(scope["path"]) > PATH_LENGTH_MAX:
            return _TOO_LONG
        return self._app if expects in {b"", b"100-continue"} else _EXPECTATION_FAILED


def _id_and_expectation(headers: list[tuple[bytes, bytes]]) -> tuple[str, bytes]:
    """The request's id (the client's, if it sent a valid one) and the value of `Expect`."""
    request_id, expects = "", b""
    for name, value in headers:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(text := value.strip(HEADER_BLANKS)):
            request_id = text.decode()
        elif name == b"expect":
            expects = value.strip(HEADER_BLANKS).lower()
    return request_id or new_request_id(), expects
