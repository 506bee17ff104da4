"""Chats with agents that are silent, frozen, away or overloaded: how long a caller waits, and what it is answered."""

import asyncio

import pytest

from tests.chatting import HELLO, PING, SSE, ending
from tests.lives import health
from tests.tiny_agent import ANSWER, STREAM
from tests.use_fixtures import Used, give, in_use, shared_api_fixture, shared_used_fixture
from tests.waiting import until

__all__ = ["shared_api_fixture", "shared_used_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("headers", [{}, SSE], ids=["whole", "streamed"])
async def test_a_chat_with_a_frozen_agent_is_answered_with_504(
    used: Used, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.agent_watch.SILENCE_S", 0.1)
    monkeypatch.setattr("hydracore.api.chat.CHECK_TIMEOUT_S", 0.2)
    used.agent.may_answer.clear()

    answer = await used.ask("POST", "/chat", HELLO, headers=headers)

    assert answer.status_code == 504
    assert answer.json() == {"detail": "The agent did not answer in time"}


async def test_a_stream_whose_agent_freezes_ends_with_an_error_event(
    used: Used, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.agent_watch.SILENCE_S", 0.1)
    monkeypatch.setattr("hydracore.api.chat.CHECK_TIMEOUT_S", 0.2)
    used.agent.stream = (STREAM[0], asyncio.Event())

    async with used.stream() as answer:
        chunks = answer.aiter_raw()
        assert await anext(chunks) == STREAM[0]
        used.agent.may_answer.clear()
        rest = b"".join([chunk async for chunk in chunks])

    assert ending(rest)["code"] == "agent_timeout"


async def test_a_stream_whose_agent_freezes_after_the_final_event_ends_without_an_error(
    used: Used, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.agent_watch.SILENCE_S", 0.1)
    monkeypatch.setattr("hydracore.api.chat.CHECK_TIMEOUT_S", 0.2)
    used.agent.stream = (*STREAM, asyncio.Event())

    async with used.stream() as answer:
        chunks = answer.aiter_raw()
        first = await anext(chunks)
        used.agent.may_answer.clear()
        said = first + b"".join([chunk async for chunk in chunks])

    assert said.replace(PING, b"") == b"".join(STREAM)


async def test_a_silent_agent_is_waited_for_as_long_as_it_answers_status_requests(
    used: Used, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.agent_watch.SILENCE_S", 0.05)
    used.agent.may_chat.clear()

    asking = asyncio.create_task(used.ask("POST", "/chat", HELLO))
    await until(lambda: len(used.agent.calls_of("/api/status")) > 2)
    used.agent.may_chat.set()

    assert (await asking).json() == ANSWER


async def test_a_stream_of_a_silent_agent_opens_and_sends_pings(used: Used, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydracore.api.agent_watch.SILENCE_S", 0.05)
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
async def test_a_refusal_after_a_ping_is_sent_as_an_error_event(
    used: Used, monkeypatch: pytest.MonkeyPatch, status: int, code: str, told: str
) -> None:
    monkeypatch.setattr("hydracore.api.agent_watch.SILENCE_S", 0.05)
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
    assert "it has not reported lately" in answers[0].json()["detail"]
    assert back.status_code == 200
    assert len(used.agent.calls) == 1


async def test_chats_beyond_the_limit_of_one_agent_get_503_and_other_agents_are_unaffected(
    used: Used, monkeypatch: pytest.MonkeyPatch
) -> None:
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
