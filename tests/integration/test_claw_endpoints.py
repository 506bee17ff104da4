"""Model endpoints that are slow or answer in unusual forms, over real connections."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from hydracore.agent.expressclaw import model_client, turn
from hydracore.agent.expressclaw.embedding_client import EmbeddingCall, embed
from hydracore.agent.expressclaw.model_client import ModelCallFailed, ModelCallTimedOut, ModelClient
from hydracore.agent.expressclaw.money import Tokens
from hydracore.modelsim.script import ANSWER_PREFIX
from tests.claw_fixtures import Claw, claw_fixture, control_plane_fixture, document, modelsim_fixture
from tests.fake_control_plane import FakeControlPlane
from tests.modelsim_fixtures import ModelSim
from tests.raw_endpoint import ask_endpoint, raw_endpoint
from tests.waiting import PATIENCE_S, until

__all__ = ["claw_fixture", "control_plane_fixture", "modelsim_fixture"]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def piece(word: str, finish_reason: str | None) -> bytes:
    choice: dict[str, Any] = {"delta": {"content": word}, "finish_reason": finish_reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


def figures(prompt: str, completion: str) -> bytes:
    """The piece with the usage figures, which are given as they stand in JSON."""
    usage = f'{{"prompt_tokens": {prompt}, "completion_tokens": {completion}}}'
    return f'data: {{"choices": [], "usage": {usage}}}\n\n'.encode()


def without_blank_lines(*parts: bytes) -> bytes:
    return b"".join(parts).replace(b"\n\n", b"\n")


async def test_a_stream_is_recognised_however_its_content_type_is_written() -> None:
    said: list[str] = []
    head = HEAD.replace(b"text/event-stream", b"Text/Event-Stream; Charset=UTF-8")

    async with raw_endpoint(head, piece("Hello ", None), piece("you", "stop")) as shouting:
        await ask_endpoint(shouting.base_url, said)

    assert said == ["Hello ", "you"]


async def test_an_empty_finish_reason_does_not_end_an_answer() -> None:
    said: list[str] = []

    async with raw_endpoint(HEAD, piece("Hello ", ""), piece("you", "")) as broken:
        with pytest.raises(ModelCallFailed, match="the stream ended before the answer was complete"):
            await ask_endpoint(broken.base_url, said)
    async with raw_endpoint(HEAD, piece("Good ", ""), piece("bye", "stop")) as whole:
        await ask_endpoint(whole.base_url, said)

    assert said == ["Hello ", "you", "Good ", "bye"]


async def test_the_first_word_and_later_words_have_separate_timeouts() -> None:
    said: list[str] = []

    async with raw_endpoint(HEAD, piece("Well", None), pause_s=0.1, stays_open=True) as slow:
        with pytest.raises(ModelCallTimedOut, match=r"no output for 0\.05 s"):
            await ask_endpoint(slow.base_url, said, next_word_s=0.05)

    assert said == ["Well"]


async def test_the_timeout_for_first_words_does_not_end_an_answer_that_has_begun(
    claw: Claw, modelsim: ModelSim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "FIRST_WORD_TIMEOUT_S", 2.0)
    clock = asyncio.get_running_loop().time
    await modelsim.fault("hold", after_tokens=1)

    begun_s = clock()
    asking = asyncio.create_task(claw.chat("Hello"))
    await until(lambda: clock() > begun_s + 2.5)
    await modelsim.release()

    answer = await asking
    assert (answer["model"], answer["message"]) == ("first", f"{ANSWER_PREFIX} You said: Hello")


WAVE = "\N{WAVING HAND SIGN}"
#: The halves of `WAVE` in UTF-16, of which each is an escape of its own in JSON.
HALVES = ("\ud83d", "\udc4b")
END = b"data: [DONE]\n\n"
LATE = b'data: {"error": {"message": "late"}}\n\n'


@pytest.mark.parametrize(
    ("parts", "answer"),
    [
        ([b'data: {"choices": [{"delta":\n', b'data: {"content": "Good"}}]}\n\n', END], "Good"),
        ([without_blank_lines(piece("Good", None), piece(" day", "stop"), figures("7", "2"), END)], "Good day"),
        ([without_blank_lines(piece(f"Hi {HALVES[0]}", None), piece(f"{HALVES[1]}!", None), END, LATE)], f"Hi {WAVE}!"),
        ([b"\xef\xbb\xbf", piece("Good", None), END], "Good"),
        ([piece(f"Hi {HALVES[0]}", None), piece(f"{HALVES[1]}!", None), END], f"Hi {WAVE}!"),
        ([piece(HALVES[1], None), piece(HALVES[0], None), piece("!", None), END], "\ufffd\ufffd!"),
        ([piece("Good", None), b"data: [DONE]\n"], "Good"),
        ([piece("Good", None), END, LATE], "Good"),
        ([piece("Good", None), END, b"data: {nonsense\n\n", piece(" night", None)], "Good"),
        ([piece("Good", "stop"), LATE], "Good"),
        ([piece("Good", "stop"), b"data: " + b"x" * 300_000], "Good"),
    ],
    ids=[
        "an event in two lines",
        "no blank lines",
        "no blank lines, a split surrogate pair and an error after the end",
        "a byte order mark",
        "a split surrogate pair",
        "mismatched surrogates",
        "no blank line at the end",
        "an error after the end",
        "nonsense after the end",
        "an error in place of usage figures",
        "an endless event in place of usage figures",
    ],
)
async def test_a_valid_answer_in_a_rare_form_is_accepted(parts: list[bytes], answer: str) -> None:
    said: list[str] = []

    async with raw_endpoint(HEAD, *parts) as endpoint:
        await ask_endpoint(endpoint.base_url, said)

    assert "".join(said) == answer


async def test_a_connection_that_breaks_after_a_complete_answer_does_not_affect_it() -> None:
    head = HEAD.replace(b"Connection: close", b"Transfer-Encoding: chunked")
    content = piece("Good", "stop")
    said: list[str] = []

    async with raw_endpoint(head, b"%x\r\n%b\r\n" % (len(content), content)) as endpoint:
        await ask_endpoint(endpoint.base_url, said)

    assert said == ["Good"]


@pytest.mark.parametrize(
    "end", [piece("Good", "stop"), piece("Good", None) + END], ids=["a finish reason", "the end of the stream"]
)
async def test_a_stream_that_continues_after_a_complete_answer_does_not_delay_the_caller(
    end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_client, "TRAILING_USAGE_TIMEOUT_S", 0.1)
    said: list[str] = []

    async with raw_endpoint(HEAD, end, then_repeats=piece("", "stop")) as endpoint:
        await ask_endpoint(endpoint.base_url, said)

    assert said == ["Good"]


async def test_an_unstreamed_answer_may_begin_with_a_byte_order_mark() -> None:
    answer = b'\xef\xbb\xbf{"choices": [{"message": {"content": "Good"}, "finish_reason": "stop"}]}'
    said: list[str] = []

    async with raw_endpoint(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", answer) as endpoint:
        await ask_endpoint(endpoint.base_url, said)

    assert said == ["Good"]


async def test_an_unstreamed_answer_has_a_size_limit() -> None:
    answer = json.dumps({"choices": [{"message": {"content": "x" * model_client.WHOLE_BYTES_MAX}}]}).encode()

    async with raw_endpoint(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", answer) as endpoint:
        with pytest.raises(ModelCallFailed, match="the answer is too large"):
            await ask_endpoint(endpoint.base_url, [])


@pytest.mark.parametrize(
    ("prompt", "completion", "tokens"),
    [
        ("7", "2", Tokens(7, 2)),
        ("7.0", '"2"', Tokens(7, 2)),
        ("7.5", "2", None),
        ("null", "2", None),
        ("7", "null", None),
        ('"many"', "2", None),
        ('"\\ud800"', "2", None),
        ("[]", "2", None),
        ("true", "2", None),
        ("-7", "2", None),
        ("7", "-2", None),
        ("1000000001", "2", None),
        ("7", str(2**63), None),
        ("7", "9" * 400, None),
        ("7", "1e300", None),
    ],
)
async def test_impossible_usage_figures_are_ignored_and_lose_no_answer(
    prompt: str, completion: str, tokens: Tokens | None
) -> None:
    said: list[str] = []

    async with raw_endpoint(HEAD, piece("Good", "stop"), figures(prompt, completion)) as endpoint:
        known = await ask_endpoint(endpoint.base_url, said)

    assert said == ["Good"]
    assert known == tokens


@pytest.mark.parametrize("prompt", ["null", "-7", "7.5", str(2**63)])
async def test_impossible_usage_figures_lose_no_embeddings(prompt: str) -> None:
    answer = f'{{"data": [{{"index": 0, "embedding": [2.0]}}], "usage": {{"prompt_tokens": {prompt}}}}}'.encode()
    client = ModelClient()

    async with raw_endpoint(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", answer) as endpoint:
        embedded = await embed(client, EmbeddingCall(endpoint.base_url, None, "m", ["Hello"], PATIENCE_S))
    await client.aclose()

    assert ([list(each) for each in embedded.vectors], embedded.prompt_tokens) == ([[1.0]], 0)


async def test_an_answer_with_impossible_usage_figures_is_metered_once_by_estimate(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    async with raw_endpoint(HEAD, piece("Hello, you there", "stop"), figures(str(2**63), "1")) as endpoint:
        changed = document(modelsim, model={"base_url": endpoint.base_url, "api_key": None})
        await claw.http.put("/api/config", json={"config_version": 4, "runtime": changed})
        answer = await claw.chat("Hello")

    assert (answer["model"], answer["message"]) == ("first", "Hello, you there")
    assert 0 < answer["usage"]["prompt_tokens"] < 1000
    await control_plane.until(lambda: len(control_plane.metered()) == 1)
    (entry,) = control_plane.metered()
    assert (entry["prompt_tokens"], entry["completion_tokens"]) == (answer["usage"]["prompt_tokens"], 4)
