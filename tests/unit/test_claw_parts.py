"""Small parts of the runtime: answers in the making, events of a stream, bots' tokens."""

from __future__ import annotations

import asyncio

import pytest

from hydracore.agent.chat_messages import ChatAnswer, TokenUsage
from hydracore.agent.chats import Interrupted, ModelFailed, OpenChat
from hydracore.agent.expressclaw.sse import EventReader, EventTooLong
from hydracore.agent.expressclaw.telegram_api import bot_id

ANSWER = ChatAnswer(
    conversation_id="c",
    message="Hello there",
    model="m",
    usage=TokenUsage(prompt_tokens=1, completion_tokens=2, cost_usd="0"),
)


async def heard(chat: OpenChat) -> list[str]:
    return [text async for text in chat.texts()]


async def test_whoever_listens_late_hears_it_all() -> None:
    chat = OpenChat()
    early = asyncio.create_task(heard(chat))
    await asyncio.sleep(0)

    chat.add_text("Hello ")
    await asyncio.sleep(0)
    late = asyncio.create_task(heard(chat))
    await asyncio.sleep(0)
    chat.add_text("the")
    chat.add_text("re")
    chat.finish(ANSWER)

    assert await early == await late == ["Hello ", "there"]
    assert await chat.answer() == ANSWER


async def test_what_nobody_has_heard_can_be_taken_back() -> None:
    chat = OpenChat()
    chat.add_text("Wrong")
    assert chat.retract()
    chat.add_text("Right")
    chat.finish(ANSWER)
    assert await heard(chat) == ["Right"]
    assert not chat.retract()


async def test_an_error_comes_after_what_was_said_and_to_everybody() -> None:
    chat = OpenChat()
    chat.add_text("Hel")
    chat.fail(ModelFailed("It broke"))

    texts = chat.texts()
    said = await anext(texts)
    with pytest.raises(ModelFailed, match="It broke"):
        await anext(texts)
    with pytest.raises(ModelFailed):
        await chat.answer()
    assert said == "Hel"


async def test_a_whole_answer_stays_one() -> None:
    chat = OpenChat()
    chat.finish(ANSWER)
    chat.fail(Interrupted("Too late"))
    assert await chat.answer() == ANSWER


def test_only_the_last_listener_leaves_a_chat_alone() -> None:
    chat = OpenChat()
    with chat.listening():
        with chat.listening():
            pass
        assert not chat.abandoned.is_set()
    assert chat.abandoned.is_set()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_found_however_they_are_cut(size: int) -> None:
    stream = (
        b"\xef\xbb\xbfdata: zero\n\n: ping\r\n\r\ndata: one\r\n\r\nevent: x\ndata:two\n\ndata: \xc3\xa4\nid: 3\n\n\n"
        b"data: in\ndata: two\n\ndata: {}\nid: 4\ndata: {\ndata: }\n\ndata: [DONE]\ndata: last\ndata: unfinished"
    )
    events = EventReader(event_bytes_max=100)

    found = [data for start in range(0, len(stream), size) for data in events.feed(stream[start : start + size])]
    left = list(events.end())

    assert found == [b"zero", b"one", b"two", "ä".encode(), b"in\ntwo", b"{}", b"{\n}", b"[DONE]"]
    assert left == [b"last"]


@pytest.mark.parametrize("chunk", [b"data: x", b"data: x\n"])
def test_an_event_without_end_is_given_up(chunk: bytes) -> None:
    events = EventReader(event_bytes_max=100)

    with pytest.raises(EventTooLong):
        for _ in range(100):
            list(events.feed(chunk))


@pytest.mark.parametrize(
    ("token", "public"),
    [
        ("4711:AbC-_09", "4711"),
        ("4711:", None),
        (":abc", None),
        ("4711:abc/../x", None),
        ("4711:abc\n", None),
        ("4711:a b", None),
        ("abc:def", None),
        ("", None),
    ],
)
def test_only_what_looks_like_a_token_becomes_part_of_an_address(token: str, public: str | None) -> None:
    assert bot_id(token) == public
