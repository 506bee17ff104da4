"""The agent's own HTTP API as an ASGI application: a table of routes behind one token.

A web framework would cost every start ten times what the rest of the agent does, for a handful of routes.
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

#: The longest body that is read; a configuration with its prompts is the longest there is.
BODY_MAX_BYTES: Final = 2 * 1024 * 1024

#: Stands for the last part of a path in the table of routes.
LAST_PART: Final = "{last}"


class Request(NamedTuple):
    """`last`: the last part of the path, for a route that ends in `LAST_PART`."""

    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    last: str

    def __repr__(self) -> str:
        return "Request()"


class Response(NamedTuple):
    """`body` is a struct or builtin that becomes JSON."""

    status: int
    body: Any
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Stream(NamedTuple):
    """A 200 whose body is made while it is sent. `chunks`, which has begun and given `first`, is closed when the caller
    leaves."""

    content_type: str
    first: bytes
    chunks: AsyncGenerator[bytes]


#: Cancelled when the caller leaves. May raise `ChatError`.
Handler = Callable[[Request], Awaitable[Response | Stream]]


class _TooLarge(Exception):
    pass


class _CallerGone(Exception):
    pass


def problem(status: int, code: str, detail: str, *headers: tuple[bytes, bytes]) -> Response:
    """An error answer."""
    return Response(status, AgentProblem(detail=detail, code=code), headers)


class AgentApi:
    """Answers the requests that carry the control token; `token` gives the one in force, as it may be replaced.

    `routes` maps a path to its handlers by method.
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
            await _send_response(send, problem(413, "too_large", f"More than {BODY_MAX_BYTES} bytes"))
            return
        except _CallerGone:
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request = Request(dict(parse_qsl(scope["query_string"].decode("latin-1"))), headers, body, last)
        responding = asyncio.create_task(self._respond(scope, handler, request, send))
        leaving = asyncio.create_task(_left(receive))
        if leaving not in await first_of(responding, leaving):
            responding.result()

    def _find(self, scope: Scope) -> tuple[Handler, str] | Response:
        """Who answers, and the last part of the path; or the refusal."""
        # Before routing, so that without the token not even the routes can be learned.
        if not self._may_enter(scope["headers"]):
            return problem(
                401, "unauthorized", "The control token is missing or wrong", (b"www-authenticate", b"Bearer")
            )
        path: str = scope["path"]
        front, _, last = path.rpartition("/")
        handlers = self._routes.get(path) or self._routes.get(f"{front}/{LAST_PART}")
        if handlers is None:
            return problem(404, "not_found", "Not found")
        handler = handlers.get(scope["method"])
        if handler is None:
            allowed = (b"allow", ", ".join(sorted(handlers)).encode())
            return problem(405, "method_not_allowed", "Method not allowed", allowed)
        return handler, last

    def _may_enter(self, headers: list[tuple[bytes, bytes]]) -> bool:
        shown = [value for name, value in headers if name == b"authorization"]
        return len(shown) == 1 and hmac.compare_digest(shown[0], b"Bearer " + self._token().encode())

    async def _respond(self, scope: Scope, handler: Handler, request: Request, send: Send) -> None:
        try:
            response = await handler(request)
        except ChatError as error:
            response = problem(error.status, error.code, error.detail)
        except Exception:  # noqa: BLE001 - a request that breaks is answered, and ends nobody else
            _log.exception("request_failed", method=scope["method"], path=scope["path"])
            response = problem(500, "failed", "The agent failed; its log has the reason")
        if isinstance(response, Stream):
            await _send_stream(send, response)
        else:
            await _send_response(send, response)


def _bind_request_id(scope: Scope) -> None:
    """Log lines of the request have its id, by which the control plane's are found too."""
    # A request that came in behind another is begun by the end of that, and with what was bound there.
    unbind_contextvars("request_id")
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            bind_contextvars(request_id=value.decode())
            return


async def _read_body(receive: Receive) -> bytes:
    """The whole body. Raises `_TooLarge`, and `_CallerGone` where the caller has left before its end: a part of an order may say
    something else than the whole of it."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _CallerGone
        body += message.get("body", b"")
        if len(body) > BODY_MAX_BYTES:
            raise _TooLarge
        if not message.get("more_body", False):
            return bytes(body)


async def _left(receive: Receive) -> None:
    """Once the body is read, the only thing left to receive is that the caller has left."""
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
