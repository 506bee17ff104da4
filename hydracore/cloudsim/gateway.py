"""ASGI middleware before the whole application: checks token and request limit, and adds headers to every answer."""

import secrets
from collections.abc import Callable
from typing import Final

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from litestar.types.asgi_types import HTTPScope

from hydracore.cloudsim.problems import ApiError
from hydracore.cloudsim.quota import Quota
from hydracore.cloudsim.sim import respond

Headers = list[tuple[bytes, bytes]]

LIMITED_PREFIX: Final = "/v1/"


class Gateway:
    """An ASGI application around `app`. `new_id` returns a new correlation id."""

    def __init__(self, app: ASGIApp, *, token: str, quota: Quota, new_id: Callable[[], str]) -> None:
        assert token
        self._app = app
        self._authorization = f"Bearer {token}".encode()
        self._quota = quota
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        extra_headers: Headers = [(name.encode(), value.encode()) for name, value in self._quota.headers()]
        extra_headers.append((b"x-correlation-id", self._new_id().encode()))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *extra_headers]
            await send(message)

        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        await respond(refusal.reply()).to_asgi_response(None, None)(scope, receive, send_with_headers)

    def _refusal(self, scope: HTTPScope) -> ApiError | None:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not secrets.compare_digest(given, self._authorization):
            return ApiError(401, "unauthorized", "unable to authenticate")
        if scope["path"].startswith(LIMITED_PREFIX) and not self._quota.take():
            return ApiError(429, "rate_limit_exceeded", "rate limit exceeded")
        return None
