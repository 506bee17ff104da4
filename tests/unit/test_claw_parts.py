"""Small parts of the runtime: chats while they are answered, events of a stream, tokens of bots."""

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


async def received(chat: OpenChat) -> list[str]:
    return [text async for text in chat.texts()]


async def test_a_listener_that_comes_late_receives_the_whole_answer() -> None:
    chat = OpenChat()
    early = asyncio.create_task(received(chat))
    await asyncio.sleep(0)

    chat.add_text("Hello ")
    await asyncio.sleep(0)
    late = asyncio.create_task(received(chat))
    await asyncio.sleep(0)
    chat.add_text("the")
    chat.add_text("re")
    chat.finish(ANSWER)

    assert await early == await late == ["Hello ", "there"]
    assert await chat.answer() == ANSWER


async def test_text_can_be_retracted_until_a_listener_has_received_it() -> None:
    chat = OpenChat()
    chat.add_text("Wrong")
    assert chat.retract()
    chat.add_text("Right")
    chat.finish(ANSWER)
    assert await received(chat) == ["Right"]
    assert not chat.retract()


async def test_an_error_is_raised_after_the_text_so_far_and_to_every_reader() -> None:
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


async def test_a_finished_answer_is_not_replaced_by_a_later_error() -> None:
    chat = OpenChat()
    chat.finish(ANSWER)
    chat.fail(Interrupted("Too late"))
    assert await chat.answer() == ANSWER


def test_a_chat_is_abandoned_only_when_its_last_listener_leaves() -> None:
    chat = OpenChat()
    with chat.listening():
        with chat.listening():
            pass
        assert not chat.abandoned.is_set()
    assert chat.abandoned.is_set()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_of_a_stream_are_read_whatever_the_chunk_size(size: int) -> None:
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
def test_an_event_longer_than_the_limit_raises_an_error(chunk: bytes) -> None:
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
def test_a_bot_id_is_read_only_from_a_well_formed_token(token: str, public: str | None) -> None:
    assert bot_id(token) == public
