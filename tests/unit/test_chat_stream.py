"""Event streams that are passed on: whole events only, and always a final event."""

import json
from collections.abc import AsyncIterator

import pytest

from hydracore.agent_client import AgentTimeout, AgentUnreachable
from hydracore.api import chat_stream
from hydracore.api.chat import wants_stream
from hydracore.api.chat_stream import complete_events

TOKEN = b'event: token\ndata: {"text":"a"}\n\n'
DONE = b'event: done\ndata: {"message":"a"}\n\n'
ERROR = b'event: error\ndata: {"code":"model_failed","detail":"x"}\n\n'


async def through(*pieces: bytes | Exception) -> list[bytes]:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    return [event async for event in complete_events(chunks())]


def code(event: bytes) -> str:
    assert event.startswith(b"event: error\ndata: ")
    return json.loads(event.removeprefix(b"event: error\ndata: "))["code"]


@pytest.mark.parametrize("ending", [DONE, ERROR])
async def test_whole_events_are_passed_on_unchanged(ending: bytes) -> None:
    assert await through(TOKEN, TOKEN + TOKEN, ending) == [TOKEN, TOKEN + TOKEN, ending]


async def test_events_that_arrive_in_pieces_are_put_together() -> None:
    whole = TOKEN + TOKEN + DONE

    for size in (1, 2, 3, 7, 40):
        pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
        assert b"".join(await through(*pieces)) == whole


@pytest.mark.parametrize(
    ("trouble", "wanted"), [(AgentTimeout("x"), "agent_timeout"), (AgentUnreachable("x"), "agent_failed")]
)
async def test_an_error_of_the_agent_ends_a_stream_with_an_error_event(trouble: Exception, wanted: str) -> None:
    *passed, last = await through(TOKEN, TOKEN[:9], trouble)

    assert passed == [TOKEN]
    assert code(last) == wanted


@pytest.mark.parametrize(
    "pieces", [(), (b"",), (TOKEN,), (TOKEN, DONE[:-1]), (b"event: donee\ndata: {}\n\n",)], ids=str
)
async def test_a_stream_without_a_final_event_ends_with_an_error_event(pieces: tuple[bytes, ...]) -> None:
    assert code((await through(*pieces))[-1]) == "agent_failed"


async def test_an_error_after_the_final_event_is_ignored() -> None:
    assert await through(DONE, AgentUnreachable("x")) == [DONE]


async def test_an_event_that_exceeds_the_limit_ends_the_stream_with_an_error_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat_stream, "EVENT_BYTES_MAX", 100)

    assert [code(event) for event in await through(*[b"x" * 60] * 5)] == ["agent_failed"]


async def test_a_large_event_that_arrives_byte_by_byte_is_not_copied_for_every_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat_stream, "EVENT_BYTES_MAX", 8 * 2**20)
    begun = b"event: done\ndata: " + b"x" * (7 * 2**20)

    # Copying 7 MiB this often would exceed the test's time limit.
    whole = await through(begun, *[b"y"] * 50_000, b"\n", b"\n")

    assert whole == [begun + b"y" * 50_000 + b"\n\n"]


async def test_the_text_of_a_final_event_inside_an_answer_does_not_end_the_stream() -> None:
    quoted = b'event: token\ndata: {"text":"\\nevent: done\\n"}\n\n'

    assert code((await through(quoted))[-1]) == "agent_failed"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (b"text/event-stream", True),
        (b"TEXT/Event-Stream; q=0.5", True),
        (b"application/json, text/event-stream", True),
        (b"text/event-stream;q=0.5, application/json", False),
        (b"text/event-stream;q=0", False),
        (b"text/event-stream;q=nonsense", True),
        (b"*/*", False),
        (b"application/json", False),
        (b"", False),
        (b",;=,", False),
        (b"text/event-stream;charset=utf-8;q=0.9,application/json;q=0.8", True),
    ],
)
def test_the_accept_header_decides_whether_an_answer_is_streamed(accept: bytes, wanted: bool) -> None:  # noqa: FBT001 - a parameter of the table
    assert wants_stream([(b"host", b"x"), (b"accept", accept)]) is wanted


def test_a_request_without_an_accept_header_gets_no_stream() -> None:
    assert not wants_stream([])
