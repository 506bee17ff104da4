"""An endpoint for models that says what a test writes down for it, byte by byte, whether that is an answer or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NamedTuple

from tests.waiting import PATIENCE_S


class RawEndpoint(NamedTuple):
    """`asked` is set once a request is there."""

    base_url: str
    asked: asyncio.Event


@asynccontextmanager
async def raw_endpoint(*parts: bytes, pause_s: float = 0.0, stays: bool = False) -> AsyncGenerator[RawEndpoint]:
    """Takes one request, and after `pause_s` answers it with these parts. Then the connection ends, unless it `stays` until the
    caller ends it."""
    asked, ended = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await asyncio.sleep(pause_s)
        writer.write(b"".join(parts))
        if stays:
            await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield RawEndpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", asked)
        await asyncio.wait_for(ended.wait(), PATIENCE_S)
