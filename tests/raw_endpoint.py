"""A model endpoint that sends the exact bytes that a test gives it, whether or not they are a valid answer, and what an agent
makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import NamedTuple

from hydracore.agent.expressclaw.context_window import ChatMessage
from hydracore.agent.expressclaw.model_client import ModelCall, ModelClient
from hydracore.agent.expressclaw.money import Tokens
from tests.waiting import PATIENCE_S


class RawEndpoint(NamedTuple):
    """`asked` is set once a request is there."""

    base_url: str
    asked: asyncio.Event


@asynccontextmanager
async def raw_endpoint(
    *parts: bytes, pause_s: float = 0.0, stays_open: bool = False, then_repeats: bytes = b""
) -> AsyncGenerator[RawEndpoint]:
    """Takes one request, and after `pause_s` answers it with these parts. Then the connection ends, unless it `stays_open`
    until the caller ends it, or `then_repeats` something until then."""
    asked, ended = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await asyncio.sleep(pause_s)
        writer.write(b"".join(parts))
        leaving = asyncio.create_task(reader.read())
        while then_repeats and not leaving.done():
            writer.write(then_repeats)
            await asyncio.wait({leaving}, timeout=0.01)
        if stays_open:
            await leaving
        leaving.cancel()
        writer.close()
        # Whoever leaves with something unread resets the connection.
        with suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield RawEndpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", asked)
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()


async def ask_endpoint(base_url: str, said: list[str], *, next_word_s: float = PATIENCE_S) -> Tokens | None:
    """Send a chat there, and add the texts of the answer to `said`; its token counts. Raises `ModelCallError`."""
    client = ModelClient()
    call = ModelCall(
        base_url=base_url,
        api_key=None,
        model="m",
        messages=[ChatMessage("user", "Hello")],
        temperature=None,
        max_tokens=None,
        first_word_s=PATIENCE_S,
        next_word_s=next_word_s,
    )
    try:
        answer = client.ask(call)
        async with aclosing(answer.texts()) as texts:
            async for text in texts:
                said.append(text)  # noqa: PERF401 - what was said before trouble counts, too
        return answer.tokens
    finally:
        await client.aclose()
