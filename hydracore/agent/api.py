"""The agent's own HTTP API as an ASGI application: a table of routes behind one token.

A web framework would cost every start ten times what the rest of the agent does, for a handful of routes.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

import msgspec
import structlog

log = structlog.get_logger()

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Response(NamedTuple):
    """`body` is a struct or builtin that becomes JSON."""

    status: int
    body: Any
    headers: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[[], Awaitable[Response]]


def problem(status: int, detail: str, *headers: tuple[bytes, bytes]) -> Response:
    """An error answer, in the shape that the whole product uses."""
    return Response(status, {"detail": detail}, headers)


class AgentApi:
    """Answers the requests that carry the control token; `token` gives the one in force, as it may be replaced.

    `routes` maps a path to its handlers by method.
    """

    def __init__(self, routes: Mapping[str, Mapping[str, Handler]], *, token: Callable[[], str]) -> None:
        self._routes = routes
        self._token = token

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "the server runs with lifespan and websockets off"
        try:
            response = await self._answer(scope)
        except Exception:
            log.exception("request_failed", method=scope["method"], path=scope["path"])
            response = problem(500, "The agent failed; its log has the reason")
        await _send_response(send, response)

    async def _answer(self, scope: Scope) -> Response:
        # Before routing, so that without the token not even the routes can be learned.
        if not self._may_enter(scope["headers"]):
            return problem(401, "The control token is missing or wrong", (b"www-authenticate", b"Bearer"))
        handlers = self._routes.get(scope["path"])
        if handlers is None:
            return problem(404, "Not found")
        handler = handlers.get(scope["method"])
        if handler is None:
            return problem(405, "Method not allowed", (b"allow", ", ".join(sorted(handlers)).encode()))
        return await handler()

    def _may_enter(self, headers: list[tuple[bytes, bytes]]) -> bool:
        shown = [value for name, value in headers if name == b"authorization"]
        return len(shown) == 1 and hmac.compare_digest(shown[0], b"Bearer " + self._token().encode())


async def _send_response(send: Send, response: Response) -> None:
    content = msgspec.json.encode(response.body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *response.headers,
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
