"""The request id in the lines of the agent's log."""

from __future__ import annotations

import asyncio

import httpx
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from tests.claw_fixtures import Claw, claw_fixture, control_plane_fixture, modelsim_fixture
from tests.modelsim_fixtures import ModelSim
from tests.waiting import PATIENCE_S

__all__ = ["claw_fixture", "control_plane_fixture", "modelsim_fixture"]


async def test_log_lines_of_a_request_to_the_agent_have_its_request_id(claw: Claw, modelsim: ModelSim) -> None:
    await modelsim.fault("status", status=500, times=2)

    with capture_logs(processors=[merge_contextvars]) as lines:
        answer = await claw.http.post("/api/chat", json={"message": "Hello"}, headers={"X-Request-Id": "of-the-caller"})
        await claw.chat("Hello")

    assert answer.status_code == 502
    failures = [line for line in lines if line["event"] == "model_failed"]
    assert [line["request_id"] for line in failures] == ["of-the-caller"] * 2
    assert all("request_id" not in line for line in lines if line not in failures)


async def test_log_lines_of_a_request_do_not_have_the_id_of_an_earlier_request_on_its_connection(
    claw: Claw, modelsim: ModelSim
) -> None:
    await modelsim.fault("status", status=500, times=4)
    chat = {"method": "POST", "url": "/api/chat", "json": {"message": "Hello"}}
    requests = [
        claw.http.build_request(**chat, headers={"X-Request-Id": "of-the-caller"}),
        claw.http.build_request(**chat, headers={"Connection": "close"}),
    ]

    with capture_logs(processors=[merge_contextvars]) as lines:
        reader, writer = await asyncio.open_connection(requests[0].url.host, requests[0].url.port)
        writer.write(b"".join(map(as_sent, requests)))
        async with asyncio.timeout(PATIENCE_S):
            answers = await reader.read()
        writer.close()

    assert answers.count(b"HTTP/1.1 502") == 2
    failures = [line.get("request_id") for line in lines if line["event"] == "model_failed"]
    assert failures == ["of-the-caller"] * 2 + [None] * 2


def as_sent(request: httpx.Request) -> bytes:
    head = b"".join(b"%s: %s\r\n" % header for header in request.headers.raw)
    return b"POST %s HTTP/1.1\r\n%s\r\n%s" % (request.url.raw_path, head, request.content)
