"""One HTTP request and its answer over ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

import msgspec

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: The largest body of a request. A long conversation has some 100 KB.
BODY_BYTES_MAX: Final = 8 * 1024 * 1024


class BodyTooLarge(Exception):
    pass


class CallerLeft(Exception):
    pass


class Exchange:
    """One exchange. Call `body` first, then either `answer`, or `begin`, `send` any number of times, and `end`."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send

    def header(self, name: str) -> str | None:
        value = self._headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    async def body(self) -> bytes:
        """Raises `BodyTooLarge` and `CallerLeft`."""
        content = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise CallerLeft
            content += message.get("body", b"")
            if len(content) > BODY_BYTES_MAX:
                raise BodyTooLarge
            if not message.get("more_body", False):
                return bytes(content)

    async def wait_until_left(self) -> None:
        """Wait until the caller has gone away."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(self, status: int, content: Any, *, headers: Mapping[str, str] | None = None) -> None:
        """`content` becomes JSON."""
        encoded = msgspec.json.encode(content)
        await self.begin(
            "application/json", status=status, headers={"content-length": str(len(encoded)), **(headers or {})}
        )
        await self._send({"type": "http.response.body", "body": encoded})

    async def begin(self, content_type: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        lines = {"content-type": content_type, **(headers or {})}
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in lines.items()]
        await self._send({"type": "http.response.start", "status": int(status), "headers": encoded})

    async def send(self, content: bytes) -> None:
        # The server's `send` does not yield to the loop. Other tasks have to run, and to notice a caller that has left.
        await asyncio.sleep(0)
        await self._send({"type": "http.response.body", "body": content, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})
