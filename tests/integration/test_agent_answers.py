"""How long an agent's answers may be, and that a hostile agent cannot make the control plane build more than it sent."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
import pytest

from hydracore.agent.chat_api import CONVERSATIONS_LISTED_MAX
from hydracore.agent.chat_messages import (
    MESSAGE_CHARS_MAX,
    ChatAnswer,
    Conversations,
    ConversationSummary,
    TokenUsage,
)
from hydracore.agent.chats import Question
from hydracore.agent.expressclaw.model_client import ANSWER_CHARS_MAX
from hydracore.agent.expressclaw.store import STORE_FILE, Store
from hydracore.agent.expressclaw.turns import PREVIEW_CHARS, TURNS_MAX, OpenTurn, Reply
from hydracore.agent_answers import (
    ANSWER_BYTES_MAX,
    CHAT_BYTES_MAX,
    CONFIG_BYTES_MAX,
    CONFIG_NAMES_MAX,
    CONVERSATION_BYTES_MAX,
)
from hydracore.agent_client import AgentAddress, AgentBadAnswer, AgentClient
from hydracore.api.chat_stream import EVENT_BYTES_MAX
from tests.memory import allocating_less_than
from tests.raw_endpoint import raw_endpoint
from tests.waiting import PATIENCE_S

Ask = Callable[[AgentClient, AgentAddress], Awaitable[object]]


@asynccontextmanager
async def answered(body: bytes) -> AsyncGenerator[tuple[AgentClient, AgentAddress]]:
    """A client, and an agent that answers the one request with `body`."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with raw_endpoint(head, body, stays_open=True) as endpoint, AgentClient(PATIENCE_S) as agent_client:
        url = urlsplit(endpoint.base_url)
        yield agent_client, AgentAddress(url.hostname or "", url.port or 0, "token")


HUGE = b'{"conversations":[' + b"[]," * 5_300_000 + b"[]]}"


async def test_a_large_answer_is_checked_to_be_an_object_without_building_its_contents() -> None:
    async with answered(HUGE) as (agent_client, at):
        # The body is held twice while its chunks are joined; its objects would take twenty times as much.
        with allocating_less_than(4 * len(HUGE)):
            found = await agent_client.conversation(at, "c-1")

    assert found == HUGE


@pytest.mark.parametrize(
    ("ask", "bytes_max"),
    [
        (lambda agent_client, at: agent_client.chat(at, {"message": "x"}), CHAT_BYTES_MAX),
        (lambda agent_client, at: agent_client.conversations(at, 20), ANSWER_BYTES_MAX),
        (lambda agent_client, at: agent_client.get_config(at), CONFIG_BYTES_MAX),
        (lambda agent_client, at: agent_client.conversation(at, "c-1"), CONVERSATION_BYTES_MAX),
    ],
    ids=["chat", "conversations", "config", "conversation"],
)
async def test_an_answer_is_accepted_up_to_its_size_limit_and_refused_one_byte_beyond(ask: Ask, bytes_max: int) -> None:
    longest = b'{"x": "%b"}' % (b"x" * (bytes_max - len(b'{"x": ""}')))

    async with answered(longest) as (agent_client, at):
        assert await ask(agent_client, at)
    async with answered(longest + b" ") as (agent_client, at):
        with pytest.raises(AgentBadAnswer, match="too large"):
            await ask(agent_client, at)


def test_the_longest_chat_answer_fits_the_size_limit() -> None:
    usage = TokenUsage(prompt_tokens=2**31, completion_tokens=2**31, cost_usd="9" * 40)
    # No character takes more room in JSON.
    message = "\x01" * ANSWER_CHARS_MAX
    longest = ChatAnswer(conversation_id="c" * 128, message=message, model="m" * 200, usage=usage)

    assert len(msgspec.json.encode(longest)) + len(b"event: done\ndata: \n\n") < CHAT_BYTES_MAX
    assert CHAT_BYTES_MAX == EVENT_BYTES_MAX


def test_the_longest_list_of_conversations_fits_the_size_limit() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC)
    preview = "\x01" * PREVIEW_CHARS
    longest = ConversationSummary(
        id="c" * 128, created_at=at, updated_at=at, message_count=2 * TURNS_MAX, preview=preview
    )

    assert len(msgspec.json.encode(Conversations((longest,) * CONVERSATIONS_LISTED_MAX))) < ANSWER_BYTES_MAX


async def test_the_longest_conversation_fits_the_size_limit(tmp_path: Path) -> None:
    store = Store(tmp_path / STORE_FILE, now_ms=lambda: 0, new_id=uuid4)
    question = Question("\x01" * MESSAGE_CHARS_MAX, "c-1", end_user=None, channel="api", key=None)
    reply = Reply("\x01" * ANSWER_CHARS_MAX, "m", TokenUsage(prompt_tokens=1, completion_tokens=2, cost_usd="3"))
    for _ in range(2 + CONVERSATION_BYTES_MAX // len(msgspec.json.encode(reply.text))):
        begun = await store.turns.begin(
            question, conversation_id="c-1", digest="d", estimate=lambda _: None, check_budget=lambda _: None
        )
        assert isinstance(begun, OpenTurn)
        await store.turns.close(begun, "done", reply=reply, spent=None)

    shown = await store.turns.conversation("c-1")

    store.close()
    assert shown is not None
    assert len(msgspec.json.encode(shown)) < CONVERSATION_BYTES_MAX
    assert [said.role for said in shown.messages[-2:]] == ["user", "assistant"]
    assert len(shown.messages) > 8


async def test_a_configuration_is_returned_byte_for_byte_with_its_version() -> None:
    async with answered(b'{"config_version": 3, "platform": { "advanced" : [1] }}') as (agent_client, at):
        found = await agent_client.get_config(at)

    assert found.version == 3
    assert {name: bytes(value) for name, value in found.document.items()} == {
        "config_version": b"3",
        "platform": b'{ "advanced" : [1] }',
    }


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"config_version": "three"}',
        b'{"config_version": 1, "x": [}',
        b'{"config_version": 1, "x": "\xff"}',
        json.dumps(dict.fromkeys(map(str, range(CONFIG_NAMES_MAX + 1)))).encode(),
    ],
    ids=["not_an_object", "invalid_version", "invalid_json", "invalid_utf8", "too_many_names"],
)
async def test_an_invalid_configuration_is_a_bad_answer(body: bytes) -> None:
    async with answered(body) as (agent_client, at):
        with pytest.raises(AgentBadAnswer, match="an unknown body"):
            await agent_client.get_config(at)
