"""Chats with agents that are silent, frozen, away or overloaded: how long a caller waits, and what it is answered."""

import asyncio

import pytest

from tests.chatting import HELLO, PING, SSE, final_error
from tests.instance_fixtures import (
    RunningInstance,
    execute_commands,
    running_instance,
    shared_api_fixture,
    shared_instance_fixture,
)
from tests.lifecycle import health
from tests.tiny_agent import ANSWER, STREAM
from tests.waiting import until

__all__ = ["shared_api_fixture", "shared_instance_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("headers", [{}, SSE], ids=["whole", "streamed"])
async def test_a_chat_with_a_frozen_agent_is_answered_with_504(
    instance: RunningInstance, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.agent_watch.SILENCE_S", 0.1)
    monkeypatch.setattr("hydracore.api.chat.CHECK_TIMEOUT_S", 0.2)
    instance.agent.may_answer.clear()

    answer = await instance.ask("POST", "/chat", HELLO, headers=headers)

    assert answer.status_code == 504
    assert answer.json() == {"detail": "The agent did not answer in time"}


async def test_a_stream_whose_agent_freezes_ends_with_an_error_event(
    instance: RunningInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.agent_watch.SILENCE_S", 0.1)
    monkeypatch.setattr("hydracore.api.chat.CHECK_TIMEOUT_S", 0.2)
    instance.agent.stream = (STREAM[0], asyncio.Event())

    async with instance.stream() as answer:
        chunks = answer.aiter_raw()
        assert await anext(chunks) == STREAM[0]
        instance.agent.may_answer.clear()
        rest = b"".join([chunk async for chunk in chunks])

    assert final_error(rest)["code"] == "agent_timeout"


async def test_a_stream_whose_agent_freezes_after_the_final_event_ends_without_an_error(
    instance: RunningInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.agent_watch.SILENCE_S", 0.1)
    monkeypatch.setattr("hydracore.api.chat.CHECK_TIMEOUT_S", 0.2)
    instance.agent.stream = (*STREAM, asyncio.Event())

    async with instance.stream() as answer:
        chunks = answer.aiter_raw()
        first = await anext(chunks)
        instance.agent.may_answer.clear()
        said = first + b"".join([chunk async for chunk in chunks])

    assert said.replace(PING, b"") == b"".join(STREAM)


async def test_a_silent_agent_is_waited_for_as_long_as_it_answers_status_requests(
    instance: RunningInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.agent_watch.SILENCE_S", 0.05)
    instance.agent.may_chat.clear()

    asking = asyncio.create_task(instance.ask("POST", "/chat", HELLO))
    await until(lambda: len(instance.agent.calls_of("/api/status")) > 2)
    instance.agent.may_chat.set()

    assert (await asking).json() == ANSWER


async def test_a_stream_of_a_silent_agent_opens_and_sends_pings(
    instance: RunningInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.agent_watch.SILENCE_S", 0.05)
    instance.agent.may_chat.clear()

    async with instance.stream() as answer:
        chunks = answer.aiter_raw()
        first = await anext(chunks)
        instance.agent.may_chat.set()
        rest = b"".join([chunk async for chunk in chunks])

    assert (answer.status_code, first) == (200, PING)
    assert rest.replace(PING, b"") == b"".join(STREAM)


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [(504, "model_timeout", "model_timeout"), (500, "internals", "agent_failed")],
)
async def test_a_refusal_after_a_ping_is_sent_as_an_error_event(
    instance: RunningInstance, monkeypatch: pytest.MonkeyPatch, status: int, code: str, told: str
) -> None:
    monkeypatch.setattr("hydracore.api.agent_watch.SILENCE_S", 0.05)
    instance.agent.may_chat.clear()
    instance.agent.script("/api/chat", status, {"detail": "In the agent's words", "code": code})

    async with instance.stream() as answer:
        chunks = answer.aiter_raw()
        await anext(chunks)
        instance.agent.may_chat.set()
        rest = b"".join([chunk async for chunk in chunks])

    assert final_error(rest)["code"] == told
    assert (b"In the agent's words" in rest) == (told == code)


async def test_an_agent_that_is_known_to_be_unreachable_is_not_asked(instance: RunningInstance) -> None:
    await execute_commands(instance.api, instance.instance_id, health("unreachable"))

    answers = [
        await instance.ask("POST", "/chat", HELLO),
        await instance.ask("POST", "/chat", HELLO, headers=SSE),
        await instance.ask("GET", "/conversations"),
        await instance.ask("POST", "/updates/apply", {}),
    ]
    await execute_commands(instance.api, instance.instance_id, health("healthy"))
    back = await instance.ask("POST", "/chat", HELLO)

    assert {answer.status_code for answer in answers} == {502}
    assert "it has not reported lately" in answers[0].json()["detail"]
    assert back.status_code == 200
    assert len(instance.agent.calls) == 1


async def test_chats_beyond_the_limit_of_one_agent_get_503_and_other_agents_are_unaffected(
    instance: RunningInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.chat.CHATS_MAX", 2)
    instance.agent.may_chat.clear()
    chats = [asyncio.create_task(instance.ask("POST", "/chat", HELLO, headers=headers)) for headers in ({}, SSE)]
    await until(lambda: len(instance.agent.calls_of("/api/chat")) == len(chats))

    for headers in ({}, SSE):
        refused = await instance.ask("POST", "/chat", HELLO, headers=headers)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    async with running_instance(instance.api) as other:
        assert (await other.ask("POST", "/chat", HELLO)).status_code == 200
    instance.agent.may_chat.set()

    assert {(await chat).status_code for chat in chats} == {200}
    assert (await instance.ask("POST", "/chat", HELLO)).status_code == 200
