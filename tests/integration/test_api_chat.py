"""Chats through the API: whole and streamed, refused, cut off, and left by their callers."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from tests.api_server import Api
from tests.lives import configure, delete, health
from tests.tiny_agent import ANSWER, CUT, STREAM, event
from tests.use_fixtures import (
    Used,
    give,
    in_use,
    order,
    shared_api_fixture,
    shared_unreachable_fixture,
    shared_used_fixture,
)
from tests.waiting import PATIENCE_S, until

__all__ = ["shared_api_fixture", "shared_unreachable_fixture", "shared_used_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO = {"message": "Hello"}
SSE = {"Accept": "text/event-stream"}
PING = b": ping\n\n"


async def streamed(used: Used, **kwargs: Any) -> tuple[int, bytes]:
    answer = await used.ask("POST", "/chat", HELLO, headers={**SSE, **kwargs.pop("headers", {})}, **kwargs)
    return answer.status_code, answer.content


def ending(body: bytes) -> dict[str, Any]:
    """The data of the last event, which must be an error."""
    last = body.rstrip(b"\n").rpartition(b"\n\n")[2]
    name, _, data = last.partition(b"\n")
    assert name == b"event: error", body
    return json.loads(data.removeprefix(b"data: "))


async def test_a_chat_is_answered_whole(used: Used) -> None:
    answer = await used.ask("POST", "/chat", {**HELLO, "conversation_id": "c-1"})

    assert answer.status_code == 200
    assert answer.json() == ANSWER
    (call,) = used.agent.calls_of("/api/chat")
    assert call.body == {"message": "Hello", "conversation_id": "c-1", "end_user": "ann"}
    assert "idempotency-key" not in call.headers


async def test_a_chat_is_streamed_as_it_comes(used: Used) -> None:
    go_on = asyncio.Event()
    used.agent.stream = (STREAM[0], go_on, *STREAM[1:])

    async with used.stream() as answer:
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


async def test_an_idempotency_key_goes_on_to_the_agent(used: Used) -> None:
    for headers in ({}, SSE):
        await used.ask("POST", "/chat", HELLO, headers={"Idempotency-Key": "first try", **headers})

    assert [call.headers["idempotency-key"] for call in used.agent.calls_of("/api/chat")] == ["first try"] * 2


@pytest.mark.parametrize(
    ("status", "code", "wanted"),
    [
        (402, "budget_spent", 402),
        (409, "idempotency_mismatch", 409),
        (502, "model_failed", 502),
        (503, "draining", 503),
        (504, "model_timeout", 504),
    ],
)
@pytest.mark.parametrize("headers", [{}, SSE], ids=["whole", "streamed"])
async def test_what_the_agent_refuses_is_refused_in_its_words(
    used: Used, headers: dict[str, str], status: int, code: str, wanted: int
) -> None:
    used.agent.script("/api/chat", status, {"detail": "In plain words", "code": code})

    answer = await used.ask("POST", "/chat", HELLO, headers=headers)

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
async def test_any_other_answer_of_an_agent_is_named_and_not_quoted(
    used: Used, status: int, body: Any, wanted: int
) -> None:
    used.agent.script("/api/chat", status, body)

    answer = await used.ask("POST", "/chat", HELLO)

    assert answer.status_code == wanted
    assert "secret" not in answer.text
    assert answer.json()["detail"]


async def test_a_stream_that_is_none_is_a_bad_answer(used: Used) -> None:
    used.agent.script("/api/chat", 200, ANSWER)

    status, body = await streamed(used)

    assert (status, "detail" in json.loads(body)) == (502, True)


@pytest.mark.parametrize("headers", [{}, SSE], ids=["whole", "streamed"])
async def test_nobody_at_the_address_is_a_502(unreachable: Used, headers: dict[str, str]) -> None:
    answer = await unreachable.ask("POST", "/chat", HELLO, headers=headers)

    assert answer.status_code == 502
    assert answer.json() == {"detail": "The agent cannot be reached"}


async def test_the_id_of_a_failed_chat_leads_to_its_reason(used: Used) -> None:
    used.agent.script("/api/chat", 502, {"detail": "No model answers", "code": "model_failed"})
    used.agent.stream = (STREAM[0], CUT)

    with capture_logs(processors=[merge_contextvars]) as lines:
        refused = await used.ask("POST", "/chat", HELLO, headers={"X-Request-Id": "of-the-refused"})
        await used.ask("POST", "/chat", HELLO, headers={**SSE, "X-Request-Id": "of-the-stream"})

    assert refused.status_code == 502
    assert [call.headers["x-request-id"] for call in used.agent.calls] == ["of-the-refused", "of-the-stream"]
    told = [(line["event"], line["log_level"], line["request_id"], line["reason"]) for line in lines]
    assert told == [
        ("agent_did_not_serve", "warning", "of-the-refused", "No model answers"),
        ("chat_broke_off", "warning", "of-the-stream", "The agent cannot be reached"),
    ]
    assert {line["instance_id"] for line in lines} == {str(used.instance_id)}
    assert lines[0]["status"] == 502
    assert all("port 7400" in line["cause"] for line in lines)


@pytest.mark.parametrize("headers", [{}, SSE], ids=["whole", "streamed"])
async def test_a_frozen_agent_holds_no_chat(
    used: Used, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.silence.SILENCE_S", 0.1)
    monkeypatch.setattr("hydracore.api.chat.LOOK_TIMEOUT_S", 0.2)
    used.agent.may_answer.clear()

    answer = await used.ask("POST", "/chat", HELLO, headers=headers)

    assert answer.status_code == 504
    assert answer.json() == {"detail": "The agent did not answer in time"}


async def test_an_agent_that_freezes_within_a_stream_ends_it_with_an_error_event(
    used: Used, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.silence.SILENCE_S", 0.1)
    monkeypatch.setattr("hydracore.api.chat.LOOK_TIMEOUT_S", 0.2)
    used.agent.stream = (STREAM[0], asyncio.Event())

    async with used.stream() as answer:
        chunks = answer.aiter_raw()
        assert await anext(chunks) == STREAM[0]
        used.agent.may_answer.clear()
        rest = b"".join([chunk async for chunk in chunks])

    assert ending(rest)["code"] == "agent_timeout"


async def test_an_agent_that_freezes_behind_its_ending_has_said_all(
    used: Used, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.silence.SILENCE_S", 0.1)
    monkeypatch.setattr("hydracore.api.chat.LOOK_TIMEOUT_S", 0.2)
    used.agent.stream = (*STREAM, asyncio.Event())

    async with used.stream() as answer:
        chunks = answer.aiter_raw()
        first = await anext(chunks)
        used.agent.may_answer.clear()
        said = first + b"".join([chunk async for chunk in chunks])

    assert said.replace(PING, b"") == b"".join(STREAM)


async def test_an_agent_that_works_is_waited_for_however_silent_it_is(
    used: Used, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.silence.SILENCE_S", 0.05)
    used.agent.may_chat.clear()

    asking = asyncio.create_task(used.ask("POST", "/chat", HELLO))
    await until(lambda: len(used.agent.calls_of("/api/status")) > 2)
    used.agent.may_chat.set()

    assert (await asking).json() == ANSWER


async def test_a_silent_stream_opens_and_pings(used: Used, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydracore.api.silence.SILENCE_S", 0.05)
    used.agent.may_chat.clear()

    async with used.stream() as answer:
        chunks = answer.aiter_raw()
        first = await anext(chunks)
        used.agent.may_chat.set()
        rest = b"".join([chunk async for chunk in chunks])

    assert (answer.status_code, first) == (200, PING)
    assert rest.replace(PING, b"") == b"".join(STREAM)


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [(504, "model_timeout", "model_timeout"), (500, "internals", "agent_failed")],
)
async def test_a_refusal_behind_a_ping_is_an_event(
    used: Used, monkeypatch: pytest.MonkeyPatch, status: int, code: str, told: str
) -> None:
    monkeypatch.setattr("hydracore.api.silence.SILENCE_S", 0.05)
    used.agent.may_chat.clear()
    used.agent.script("/api/chat", status, {"detail": "In the agent's words", "code": code})

    async with used.stream() as answer:
        chunks = answer.aiter_raw()
        await anext(chunks)
        used.agent.may_chat.set()
        rest = b"".join([chunk async for chunk in chunks])

    assert ending(rest)["code"] == told
    assert (b"In the agent's words" in rest) == (told == code)


async def test_an_agent_that_is_known_to_be_unreachable_is_not_asked(used: Used) -> None:
    await give(used.api, used.instance_id, health("unreachable"))

    answers = [
        await used.ask("POST", "/chat", HELLO),
        await used.ask("POST", "/chat", HELLO, headers=SSE),
        await used.ask("GET", "/conversations"),
        await used.ask("POST", "/updates/apply", {}),
    ]
    await give(used.api, used.instance_id, health("healthy"))
    back = await used.ask("POST", "/chat", HELLO)

    assert {answer.status_code for answer in answers} == {502}
    assert "nothing has been heard of it" in answers[0].json()["detail"]
    assert back.status_code == 200
    assert len(used.agent.calls) == 1


async def test_one_agent_takes_no_more_chats_than_its_share(used: Used, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydracore.api.chat.CHATS_MAX", 2)
    used.agent.may_chat.clear()
    chats = [asyncio.create_task(used.ask("POST", "/chat", HELLO, headers=headers)) for headers in ({}, SSE)]
    await until(lambda: len(used.agent.calls_of("/api/chat")) == len(chats))

    for headers in ({}, SSE):
        refused = await used.ask("POST", "/chat", HELLO, headers=headers)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    async with in_use(used.api) as other:
        assert (await other.ask("POST", "/chat", HELLO)).status_code == 200
    used.agent.may_chat.set()

    assert {(await chat).status_code for chat in chats} == {200}
    assert (await used.ask("POST", "/chat", HELLO)).status_code == 200


async def test_a_stream_that_is_cut_ends_with_an_error_event(used: Used) -> None:
    used.agent.stream = (STREAM[0], b"event: token\ndata: {", CUT)

    status, body = await streamed(used)

    assert status == 200
    assert body.startswith(STREAM[0])
    # The half event is not passed on: the error behind it could not be told from it.
    assert b"data: {\n" not in body
    assert ending(body)["code"] == "agent_failed"


async def test_a_stream_without_an_ending_gets_one(used: Used) -> None:
    used.agent.stream = STREAM[:2]

    _, body = await streamed(used)

    assert body.startswith(b"".join(STREAM[:2]))
    assert ending(body) == {"code": "agent_failed", "detail": "The agent broke off its answer"}


async def test_a_stream_that_falls_silent_ends_with_an_error_event(used: Used, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydracore.api.chat.IDLE_TIMEOUT_S", 0.2)
    used.agent.stream = (STREAM[0], asyncio.Event())

    _, body = await streamed(used)

    assert ending(body)["code"] == "agent_timeout"


async def test_an_error_of_the_agents_within_a_stream_is_passed_on(used: Used) -> None:
    trouble = event("error", {"code": "model_failed", "detail": "All models failed"})
    used.agent.stream = (STREAM[0], trouble)

    _, body = await streamed(used)

    assert body == STREAM[0] + trouble


@pytest.mark.parametrize("headers", [{}, SSE], ids=["whole", "streamed"])
async def test_a_caller_who_leaves_before_the_answer_ends_the_request_to_the_agent(
    used: Used, headers: dict[str, str]
) -> None:
    used.agent.may_answer.clear()

    asking = asyncio.create_task(used.ask("POST", "/chat", HELLO, headers=headers))
    await until(lambda: used.agent.calls_of("/api/chat"))
    asking.cancel()

    await asyncio.wait_for(used.agent.left.wait(), PATIENCE_S)


async def test_a_caller_who_leaves_within_a_stream_ends_the_request_to_the_agent(used: Used) -> None:
    used.agent.stream = (STREAM[0], asyncio.Event())

    async with used.stream() as answer:
        await anext(answer.aiter_raw())
        assert not used.agent.left.is_set()

    await asyncio.wait_for(used.agent.left.wait(), PATIENCE_S)


async def test_streams_hold_no_connection_to_the_database(used: Used) -> None:
    go_on = asyncio.Event()
    used.agent.stream = (STREAM[0], go_on, *STREAM[1:])
    chats = [asyncio.create_task(streamed(used)) for _ in range(50)]
    await until(lambda: len(used.agent.calls_of("/api/chat")) == len(chats))

    detail = await used.ask("GET", "")
    busy = used.api.parts.pool.get_stats()

    assert detail.status_code == 200
    assert busy["pool_available"] == busy["pool_size"]
    go_on.set()
    assert {await chat for chat in chats} == {(200, b"".join(STREAM))}


async def test_only_a_running_instance_chats(api: Api) -> None:
    instance_id = await order(api)
    pending = await api.client.post(f"/v1/instances/{instance_id}/chat", json=HELLO, headers=api.token())
    await give(api, instance_id, delete())
    deleting = await api.client.post(f"/v1/instances/{instance_id}/chat", json=HELLO, headers=api.token())

    assert (pending.status_code, deleting.status_code) == (409, 409)
    assert "pending" in pending.json()["detail"]


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
async def test_what_is_no_message_never_reaches_the_agent(used: Used, body: dict[str, Any], where: str) -> None:
    answer = await used.ask("POST", "/chat", body)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", where]
    assert used.agent.calls == []


@pytest.mark.parametrize("key", ["", "x" * 201, "schlüssel"])
async def test_a_key_that_is_no_header_is_refused(used: Used, key: str) -> None:
    answer = await used.ask("POST", "/chat", HELLO, headers={"Idempotency-Key": key.encode("latin-1")})

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["header", "idempotency-key"]


async def test_eight_thousand_characters_pass_however_they_are_written_and_a_large_body_does_not(used: Used) -> None:
    plain = await used.ask("POST", "/chat", {"message": "ä" * 8000})
    headers = {**used.api.token(), "Content-Type": "application/json"}
    escaped = await used.api.client.post(
        f"/v1/instances/{used.instance_id}/chat", content=json.dumps({"message": "😀" * 8000}), headers=headers
    )
    larger = await used.ask("POST", "/chat", {"message": "x" * 200_000})

    assert (plain.status_code, escaped.status_code, larger.status_code) == (200, 200, 413)
    assert used.agent.calls[-1].body["message"] == "😀" * 8000


async def test_who_else_may_chat(used: Used) -> None:
    api = used.api
    answers = {
        name: await used.ask("POST", "/chat", HELLO, headers=headers)
        for name, headers in {
            "admin": api.token(user="root", role="admin"),
            "platform": api.token(tenant="ours", user="ops", role="platform"),
            "other_customer": api.token(user="bob"),
            "other_tenant": api.token(tenant="rival"),
            "nobody": {"Authorization": "Bearer nonsense"},
        }.items()
    }

    assert {name: answer.status_code for name, answer in answers.items()} == {
        "admin": 200,
        "platform": 200,
        "other_customer": 403,
        "other_tenant": 404,
        "nobody": 401,
    }
    assert len(used.agent.calls) == 2


async def test_staff_chat_in_conversations_of_their_own(used: Used) -> None:
    admin, other = (used.api.token(user=user, role="admin") for user in ("root", "toor"))

    await used.ask("POST", "/chat", HELLO, headers=admin)
    theirs = used.agent.calls[-1].body["conversation_id"]
    again = await used.ask("POST", "/chat", {**HELLO, "conversation_id": theirs}, headers=admin)
    of_the_owner = await used.ask("POST", "/chat", {**HELLO, "conversation_id": "c-1"}, headers=admin)
    of_another = await used.ask("POST", "/chat", {**HELLO, "conversation_id": theirs}, headers=other)

    assert theirs.startswith("staff:")
    assert (again.status_code, of_the_owner.status_code, of_another.status_code) == (200, 403, 403)
    assert len(used.agent.calls) == 2


async def test_joining_a_conversation_of_the_owners_needs_consent_and_is_an_access(used: Used) -> None:
    await used.ask("PATCH", "/consent", {"consent_debug_access": True})
    before = await used.version()

    answer = await used.ask(
        "POST",
        "/chat",
        {**HELLO, "conversation_id": "c-1"},
        headers=used.api.token(user="root", role="admin"),
    )

    assert answer.status_code == 200
    assert await used.version() == before + 1


async def test_the_key_of_a_staff_members_first_message_gives_the_same_conversation(used: Used) -> None:
    admin = {**used.api.token(user="root", role="admin"), "Idempotency-Key": "k"}

    for _ in range(2):
        await used.ask("POST", "/chat", HELLO, headers=admin)

    first, second = used.agent.calls
    assert first.body == second.body


async def test_a_configuration_without_budget_asks_nobody_what_was_spent(used: Used) -> None:
    await give(used.api, used.instance_id, configure(agent_name="Ada"))

    assert (await used.ask("POST", "/chat", HELLO)).status_code == 200


async def test_two_hundred_streams_run_at_once(used: Used) -> None:
    go_on = asyncio.Event()
    used.agent.stream = (STREAM[0], go_on, *STREAM[1:])
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=used.api.url, timeout=PATIENCE_S, limits=limits) as client:
        url, headers = f"/v1/instances/{used.instance_id}/chat", {**used.api.token(), **SSE}
        chats: list[asyncio.Task[httpx.Response]] = []
        # They come some at a time and all stay: it is open streams, not a rush, that a control plane has to bear.
        for wanted in range(20, 201, 20):
            chats += [asyncio.create_task(client.post(url, json=HELLO, headers=headers)) for _ in range(20)]
            await until(lambda wanted=wanted: len(used.agent.calls_of("/api/chat")) == wanted)
        assert len(chats) == 200
        status = await used.ask("GET", "/runtime")
        go_on.set()
        answers = await asyncio.gather(*chats)

    assert status.json()["uptime_seconds"] == 5
    # While they wait for the last to come, the first ones may get a sign of life.
    assert {(answer.status_code, answer.content.replace(PING, b"")) for answer in answers} == {(200, b"".join(STREAM))}


async def test_a_running_instance_of_another_tenant_is_another_world(api: Api) -> None:
    async with in_use(api) as used:
        answer = await used.ask("POST", "/chat", HELLO, headers=api.token(tenant="rival", role="admin"))

    absent = await api.client.post(
        f"/v1/instances/{'0' * 8}-0000-4000-8000-{'0' * 12}/chat", json=HELLO, headers=api.token()
    )
    assert (answer.status_code, answer.content) == (404, absent.content)
