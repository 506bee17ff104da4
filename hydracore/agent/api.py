"""The agent's own HTTP API as an ASGI application: a table of routes behind one token.

Importing a web framework would take ten times as long as the rest of the agent's start, for a handful of routes.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import msgspec
import structlog
from structlog.contextvars import bind_contextvars, unbind_contextvars

from hydracore.agent.chat_messages import AgentProblem
from hydracore.agent.chats import ChatError
from hydracore.transport import REQUEST_ID
from hydracore.waiting import first_of

_log = structlog.get_logger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: The largest body of a request; a larger one is answered with 413. The largest in use is a
#: configuration with its prompts.
BODY_BYTES_MAX: Final = 2 * 1024 * 1024

#: Placeholder in the table of routes for the last segment of a path.
LAST_SEGMENT: Final = "{last}"


class Request(NamedTuple):
    """`last_segment`: the last segment of the path, for a route that ends in `LAST_SEGMENT`."""

    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    last_segment: str

    def __repr__(self) -> str:
        return "Request()"


class Response(NamedTuple):
    """`body` is a struct or builtin that becomes JSON."""

    status: int
    body: Any
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Stream(NamedTuple):
    """A 200 whose body is generated while it is sent. `first`: its first chunk, already taken from `chunks`. `chunks`
    is closed when the caller disconnects."""

    content_type: str
    first: bytes
    chunks: AsyncGenerator[bytes]


#: Answers one request. Raises `ChatError`; is cancelled when the caller disconnects.
Handler = Callable[[Request], Awaitable[Response | Stream]]


class _TooLarge(Exception):
    pass


class _CallerGone(Exception):
    pass


def problem(status: int, code: str, detail: str, *headers: tuple[bytes, bytes]) -> Response:
    """An error answer."""
    return Response(status, AgentProblem(detail=detail, code=code), headers)


class AgentApi:
    """Answers requests that carry the control token.

    `routes` maps a path to its handlers by method. `token` returns the present control token, which may be replaced.
    """

    def __init__(self, routes: Mapping[str, Mapping[str, Handler]], *, token: Callable[[], str]) -> None:
        self._routes = routes
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "the server runs with lifespan and websockets off"
        _bind_request_id(scope)
        found = self._find(scope)
        if isinstance(found, Response):
            await _send_response(send, found)
            return
        handler, last = found
        try:
            body = await _read_body(receive)
        except _TooLarge:
            await _send_response(send, problem(413, "too_large", f"The body is larger than {BODY_BYTES_MAX} bytes"))
            return
        except _CallerGone:
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request = Request(dict(parse_qsl(scope["query_string"].decode("latin-1"))), headers, body, last)
        responding = asyncio.create_task(self._respond(scope, handler, request, send))
        leaving = asyncio.create_task(_disconnected(receive))
        if leaving not in await first_of(responding, leaving):
            responding.result()

    def _find(self, scope: Scope) -> tuple[Handler, str] | Response:
        """The handler and the last part of the path, or the answer of a refusal."""
        # Checked before routing, so that callers without the token cannot even find out which routes exist.
        if not self._is_authorized(scope["headers"]):
            return problem(
                401, "unauthorized", "The control token is missing or wrong", (b"www-authenticate", b"Bearer")
            )
        path: str = scope["path"]
        front, _, last = path.rpartition("/")
        handlers = self._routes.get(path) or self._routes.get(f"{front}/{LAST_SEGMENT}")
        if handlers is None:
            return problem(404, "not_found", "Not found")
        handler = handlers.get(scope["method"])
        if handler is None:
            allowed = (b"allow", ", ".join(sorted(handlers)).encode())
            return problem(405, "method_not_allowed", "Method not allowed", allowed)
        return handler, last

    def _is_authorized(self, headers: list[tuple[bytes, bytes]]) -> bool:
        shown = [value for name, value in headers if name == b"authorization"]
        return len(shown) == 1 and hmac.compare_digest(shown[0], b"Bearer " + self._token().encode())

    async def _respond(self, scope: Scope, handler: Handler, request: Request, send: Send) -> None:
        try:
            response = await handler(request)
        except ChatError as error:
            response = problem(error.status, error.code, error.detail)
        except Exception:  # noqa: BLE001 - a request that fails gets a 500, and affects no other
            _log.exception("request_failed", method=scope["method"], path=scope["path"])
            response = problem(500, "failed", "The agent failed; see its log for the reason")
        if isinstance(response, Stream):
            await _send_stream(send, response)
        else:
            await _send_response(send, response)


def _bind_request_id(scope: Scope) -> None:
    """Add the request id, if one was sent, to all log lines of this request. The control plane logs the same id."""
    # A pipelined request starts in the context of the request before it, whose id would still be bound.
    unbind_contextvars("request_id")
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            bind_contextvars(request_id=value.decode())
            return


async def _read_body(receive: Receive) -> bytes:
    """The whole body. Raises `_TooLarge`, and `_CallerGone` if the caller disconnects before its end.

    A truncated body must not be handled: it may be valid all the same, and mean something else.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _CallerGone
        body += message.get("body", b"")
        if len(body) > BODY_BYTES_MAX:
            raise _TooLarge
        if not message.get("more_body", False):
            return bytes(body)


async def _disconnected(receive: Receive) -> None:
    """Wait until the caller disconnects. The body must have been read: then nothing else is left to receive."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_response(send: Send, response: Response) -> None:
    content = msgspec.json.encode(response.body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *response.headers,
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def _send_stream(send: Send, stream: Stream) -> None:
    headers = [(b"content-type", stream.content_type.encode()), (b"cache-control", b"no-store")]
    async with aclosing(stream.chunks):
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": stream.first, "more_body": True})
        async for chunk in stream.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
