"""Event streams on their way through: whole events only, and never an end without a word."""

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
async def test_whole_events_pass_as_they_come(ending: bytes) -> None:
    assert await through(TOKEN, TOKEN + TOKEN, ending) == [TOKEN, TOKEN + TOKEN, ending]


async def test_events_in_pieces_are_put_together() -> None:
    whole = TOKEN + TOKEN + DONE

    for size in (1, 2, 3, 7, 40):
        pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
        assert b"".join(await through(*pieces)) == whole


@pytest.mark.parametrize(
    ("trouble", "wanted"), [(AgentTimeout("x"), "agent_timeout"), (AgentUnreachable("x"), "agent_failed")]
)
async def test_trouble_ends_a_stream_with_its_name(trouble: Exception, wanted: str) -> None:
    *passed, last = await through(TOKEN, TOKEN[:9], trouble)

    assert passed == [TOKEN]
    assert code(last) == wanted


@pytest.mark.parametrize(
    "pieces", [(), (b"",), (TOKEN,), (TOKEN, DONE[:-1]), (b"event: donee\ndata: {}\n\n",)], ids=str
)
async def test_an_end_without_an_ending_is_an_error(pieces: tuple[bytes, ...]) -> None:
    assert code((await through(*pieces))[-1]) == "agent_failed"


async def test_trouble_behind_the_ending_is_nobodys_business() -> None:
    assert await through(DONE, AgentUnreachable("x")) == [DONE]


async def test_what_never_becomes_an_event_is_not_gathered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_stream, "EVENT_BYTES_MAX", 100)

    assert [code(event) for event in await through(*[b"x" * 60] * 5)] == ["agent_failed"]


async def test_what_comes_byte_by_byte_is_not_gone_through_again_with_every_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat_stream, "EVENT_BYTES_MAX", 8 * 2**20)
    begun = b"event: done\ndata: " + b"x" * (7 * 2**20)

    # To copy 7 MiB this often would outlast the test's limit.
    whole = await through(begun, *[b"y"] * 50_000, b"\n", b"\n")

    assert whole == [begun + b"y" * 50_000 + b"\n\n"]


async def test_words_in_an_answer_are_no_ending() -> None:
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
def test_who_wants_a_stream_says_so(accept: bytes, wanted: bool) -> None:  # noqa: FBT001 - a parameter of the table
    assert wants_stream([(b"host", b"x"), (b"accept", accept)]) is wanted


def test_who_says_nothing_gets_no_stream() -> None:
    assert not wants_stream([])
