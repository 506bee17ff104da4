"""Requests as they are sent over the wire, byte for byte, and the answers to them."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import httpx

from tests.api_server import Api
from tests.waiting import PATIENCE_S

INSTANCE_REQUEST = {"region_id": "local", "tier_id": "starter"}


class Answer(NamedTuple):
    """`content`: what came until the server closed the connection."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)


async def exchange(api: Api, *pieces: bytes) -> Answer:
    """The one answer to what is sent; `pieces` go out one by one."""
    address = httpx.URL(api.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            content = await reader.read()
    finally:
        writer.close()
    status_line, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answer(int(status_line.split()[1]), headers, content)


def request(target: str, *headers: str, method: str = "GET", body: Any = None) -> bytes:
    """A request whose answer ends the connection. `headers` are lines, as they are."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close", *headers]
    if content:
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


def bearer(api: Api) -> str:
    return f"Authorization: {api.token()['Authorization']}"
