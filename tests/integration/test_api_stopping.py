"""A stop of the API that cannot wait any longer: every client that still waits for an answer is given one."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import httpx
import pytest
from structlog.testing import capture_logs

from hydracore.api import main
from tests.api_server import Api, bearer, running_api
from tests.instance_fixtures import RunningInstance, running_instance
from tests.tiny_agent import STREAM
from tests.waiting import PATIENCE_S, until

ORIGIN = "https://shop.example"
DETAIL = "Temporarily unavailable; try again"


async def test_clients_still_waiting_when_the_api_stops_are_answered_with_an_error_to_retry(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(main, "STOP_GRACE_S", 0.1)
    async with AsyncExitStack() as outside:
        with capture_logs() as said:
            async with running_api(database_url, redis_url, cors_origins=(ORIGIN,)) as api:
                talking = await outside.enter_async_context(running_instance(api))
                talking.agent.stream = (STREAM[0], asyncio.Event())
                finished = await outside.enter_async_context(running_instance(api))
                finished.agent.stream = (STREAM[-1], asyncio.Event())
                silent = await outside.enter_async_context(running_instance(api))
                silent.agent.may_chat.clear()

                stream = await asking(chat(talking, "text/event-stream"), api, outside)
                await stream.readuntil(b"\n\n\r\n")
                ended = await asking(chat(finished, "text/event-stream"), api, outside)
                await ended.readuntil(b"\n\n\r\n")
                waiting = [
                    await asking(chat(silent, "text/event-stream"), api, outside),
                    await asking(chat(silent, "application/json"), api, outside),
                    await asking(head("/v1/instances", 9), api, outside),
                ]
                await until(lambda: len(silent.agent.calls_of("/api/chat")) == 2)
        async with asyncio.timeout(PATIENCE_S):
            rest, behind_the_end = await stream.read(), await ended.read()
            answers = [(await each.read()).decode() for each in waiting]

    ending = {"code": "interrupted", "detail": DETAIL}
    event = b"event: error\ndata: " + json.dumps(ending, separators=(",", ":")).encode() + b"\n\n"
    assert rest == b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
    assert behind_the_end == b"0\r\n\r\n"
    for answer in answers:
        status, _, content = answer.partition("\r\n")
        headers, _, body = content.partition("\r\n\r\n")
        assert (status, json.loads(body)) == ("HTTP/1.1 503 Service Unavailable", {"detail": DETAIL})
        assert {"retry-after: 2", f"access-control-allow-origin: {ORIGIN}"} <= set(headers.split("\r\n"))
        assert "x-request-id: " in headers
    assert sorted(line["event"] for line in said) == ["chat_broke_off", *["request_not_served"] * 3]
    assert not any(record.exc_info for record in caplog.records)


def head(path: str, length: int, *more: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: x", f"Origin: {ORIGIN}", f"Content-Length: {length}", *more)
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in bearer().items()), "", ""]).encode()


def chat(instance: RunningInstance, accept: str) -> bytes:
    body = b'{"message":"Hello"}'
    return head(f"/v1/instances/{instance.instance_id}/chat", len(body), f"Accept: {accept}") + body


async def asking(request: bytes, api: Api, outside: AsyncExitStack) -> asyncio.StreamReader:
    """A reader of the answer to `request`, on a connection that stays open until `outside` ends."""
    address = httpx.URL(api.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    outside.callback(writer.close)
    writer.write(request)
    return reader
