"""Chats through the API: whole and streamed, and what is refused of them, on either side."""

import asyncio
import json
from typing import Any

import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from tests.chatting import HELLO, SSE, stream_chat
from tests.instance_fixtures import (
    RunningInstance,
    execute_commands,
    shared_api_fixture,
    shared_instance_fixture,
    shared_unreachable_fixture,
)
from tests.lifecycle import configure
from tests.tiny_agent import ANSWER, CUT, STREAM

__all__ = ["shared_api_fixture", "shared_instance_fixture", "shared_unreachable_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_chat_that_is_not_streamed_is_answered_whole(instance: RunningInstance) -> None:
    answer = await instance.ask("POST", "/chat", {**HELLO, "conversation_id": "c-1"})

    assert answer.status_code == 200
    assert answer.json() == ANSWER
    (call,) = instance.agent.calls_of("/api/chat")
    assert call.body == {"message": "Hello", "conversation_id": "c-1", "end_user": "ann"}
    assert "idempotency-key" not in call.headers


async def test_a_streamed_chat_is_passed_on_before_it_is_complete(instance: RunningInstance) -> None:
    go_on = asyncio.Event()
    instance.agent.stream = (STREAM[0], go_on, *STREAM[1:])

    async with instance.stream() as answer:
        chunks = answer.aiter_raw()
        first = await anext(chunks)
        # The agent waits for us: what came, came before the answer was whole.
        go_on.set()
        rest = b"".join([chunk async for chunk in chunks])

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-request-id"]
    assert first == STREAM[0]
    assert first + rest == b"".join(STREAM)


async def test_an_idempotency_key_is_passed_on_to_the_agent(instance: RunningInstance) -> None:
    for headers in ({}, SSE):
        await instance.ask("POST", "/chat", HELLO, headers={"Idempotency-Key": "first try", **headers})

    assert [call.headers["idempotency-key"] for call in instance.agent.calls_of("/api/chat")] == ["first try"] * 2


@pytest.mark.parametrize(
    ("status", "code", "wanted"),
    [
        (402, "budget_spent", 402),
        (409, "idempotency_mismatch", 409),
        (502, "model_failed", 502),
        (503, "busy", 503),
        (503, "draining", 503),
        (503, "interrupted", 503),
        (503, "not_serving", 503),
        (504, "model_timeout", 504),
    ],
)
@pytest.mark.parametrize("headers", [{}, SSE], ids=["whole", "streamed"])
async def test_a_refusal_of_the_agent_is_passed_on_with_its_status_and_text(
    instance: RunningInstance, headers: dict[str, str], status: int, code: str, wanted: int
) -> None:
    instance.agent.script("/api/chat", status, {"detail": "In plain words", "code": code})

    answer = await instance.ask("POST", "/chat", HELLO, headers=headers)

    assert answer.status_code == wanted
    assert answer.json() == {"detail": "In plain words"}
    assert ("retry-after" in answer.headers) == (wanted == 503)


@pytest.mark.parametrize(
    ("status", "body", "wanted"),
    [
        (500, {"detail": "secret internals"}, 502),
        (500, b"<html>secret internals", 502),
        (401, {"detail": "secret internals"}, 502),
        (404, {"detail": "secret internals"}, 502),
        (307, {"detail": "secret internals"}, 502),
        (413, {"detail": "secret internals"}, 413),
        (422, {"detail": "secret internals"}, 422),
        (502, {"detail": "secret internals"}, 502),
        (503, {"detail": "secret internals"}, 503),
        (504, {"detail": "secret internals"}, 504),
        (200, b"secret internals", 502),
        (200, b'["secret internals"]', 502),
        (200, b"", 502),
    ],
)
async def test_an_unexpected_answer_of_an_agent_is_an_error_that_does_not_quote_it(
    instance: RunningInstance, status: int, body: Any, wanted: int
) -> None:
    instance.agent.script("/api/chat", status, body)

    answer = await instance.ask("POST", "/chat", HELLO)

    assert answer.status_code == wanted
    assert "secret" not in answer.text
    assert answer.json()["detail"]


async def test_an_agent_that_answers_without_the_requested_stream_is_a_502(instance: RunningInstance) -> None:
    instance.agent.script("/api/chat", 200, ANSWER)

    status, body = await stream_chat(instance)

    assert (status, "detail" in json.loads(body)) == (502, True)


@pytest.mark.parametrize("headers", [{}, SSE], ids=["whole", "streamed"])
async def test_an_agent_that_cannot_be_reached_is_a_502(unreachable: RunningInstance, headers: dict[str, str]) -> None:
    answer = await unreachable.ask("POST", "/chat", HELLO, headers=headers)

    assert answer.status_code == 502
    assert answer.json() == {"detail": "The agent cannot be reached"}


async def test_the_request_id_of_a_failed_chat_is_logged_with_its_reason(instance: RunningInstance) -> None:
    instance.agent.script("/api/chat", 502, {"detail": "No model answers", "code": "model_failed"})
    instance.agent.stream = (STREAM[0], CUT)

    with capture_logs(processors=[merge_contextvars]) as lines:
        refused = await instance.ask("POST", "/chat", HELLO, headers={"X-Request-Id": "of-the-refused"})
        await instance.ask("POST", "/chat", HELLO, headers={**SSE, "X-Request-Id": "of-the-stream"})

    assert refused.status_code == 502
    assert [call.headers["x-request-id"] for call in instance.agent.calls] == ["of-the-refused", "of-the-stream"]
    told = [(line["event"], line["log_level"], line["request_id"], line["reason"]) for line in lines]
    assert told == [
        ("agent_did_not_serve", "warning", "of-the-refused", "No model answers"),
        ("chat_broke_off", "warning", "of-the-stream", "The agent cannot be reached"),
    ]
    assert {line["instance_id"] for line in lines} == {str(instance.instance_id)}
    assert lines[0]["status"] == 502
    assert all("port 7400" in line["cause"] for line in lines)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"message": ""}, "message"),
        ({"message": "x" * 8001}, "message"),
        ({"message": "a\0"}, "message"),
        ({"message": 5}, "message"),
        ({}, "message"),
        ({"message": "x", "conversation_id": "a/../b"}, "conversation_id"),
        ({"message": "x", "conversation_id": ""}, "conversation_id"),
        ({"message": "x", "conversation_id": "x" * 129}, "conversation_id"),
        ({"message": "x", "conversation_id": "a\n"}, "conversation_id"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_an_invalid_chat_request_is_refused_and_never_reaches_the_agent(
    instance: RunningInstance, body: dict[str, Any], where: str
) -> None:
    answer = await instance.ask("POST", "/chat", body)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", where]
    assert instance.agent.calls == []


@pytest.mark.parametrize("key", ["", "x" * 201, "schlüssel"])
async def test_an_invalid_idempotency_key_is_refused(instance: RunningInstance, key: str) -> None:
    answer = await instance.ask("POST", "/chat", HELLO, headers={"Idempotency-Key": key.encode("latin-1")})

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["header", "idempotency-key"]


async def test_a_message_of_8000_characters_passes_escaped_or_not_and_a_large_body_is_refused(
    instance: RunningInstance,
) -> None:
    plain = await instance.ask("POST", "/chat", {"message": "ä" * 8000})
    headers = {**instance.api.token(), "Content-Type": "application/json"}
    escaped = await instance.api.client.post(
        f"/v1/instances/{instance.instance_id}/chat", content=json.dumps({"message": "😀" * 8000}), headers=headers
    )
    larger = await instance.ask("POST", "/chat", {"message": "x" * 200_000})

    assert (plain.status_code, escaped.status_code, larger.status_code) == (200, 200, 413)
    assert instance.agent.calls[-1].body["message"] == "😀" * 8000


async def test_a_chat_is_answered_if_the_configuration_has_no_budget(instance: RunningInstance) -> None:
    await execute_commands(instance.api, instance.instance_id, configure(agent_name="Ada"))

    assert (await instance.ask("POST", "/chat", HELLO)).status_code == 200
