"""The scripted model server speaks OpenAI's protocol, says that it is scripted, and misbehaves on order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from hydracore.modelsim import recent_records
from hydracore.modelsim.main import serve
from hydracore.modelsim.script import ANSWER_PREFIX, ScriptError
from hydracore.transport import EMPTY_TRUST_STORE
from tests.agent_process import free_address
from tests.command import Command
from tests.modelsim_fixtures import ModelSim, modelsim_fixture, running_modelsim
from tests.waiting import until

__all__ = ["modelsim_fixture"]


def ask(message: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": message}]
    return {"model": "any-name", "messages": messages, **fields}


async def streamed(sim: ModelSim, message: str, **fields: Any) -> list[dict[str, Any]]:
    """The pieces of a streamed answer; its end must have been marked."""
    request = ask(message, stream=True, **fields)
    async with sim.http.stream("POST", "/v1/chat/completions", json=request) as response:
        assert response.headers["content-type"] == "text/event-stream"
        lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def text_of(pieces: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content", "") for piece in pieces for choice in piece["choices"])


async def test_modelsim_says_that_it_is_scripted_in_its_model_list_and_in_its_answers(modelsim: ModelSim) -> None:
    listed = (await modelsim.http.get("/v1/models")).json()["data"]
    answer = (await modelsim.http.post("/v1/chat/completions", json=ask("Hello there"))).json()

    assert all("scripted" in model["owned_by"] for model in listed)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": f"{ANSWER_PREFIX} You said: Hello there"}
    assert "scripted" in answer["system_fingerprint"]
    assert answer["model"] == "any-name"


@pytest.mark.parametrize(
    ("address", "seen"), [("chat/completions", "requests"), ("embeddings", "embeddings")], ids=["chats", "embeddings"]
)
async def test_fewer_requests_are_remembered_when_they_are_long(
    modelsim: ModelSim, monkeypatch: pytest.MonkeyPatch, address: str, seen: str
) -> None:
    monkeypatch.setattr(recent_records, "BODIES_BYTES_MAX", 20_000)

    async def remembered_after(*lengths: int) -> int:
        for length in lengths:
            request = ask("x" * length) if seen == "requests" else {"model": "any-name", "input": "x" * length}
            await modelsim.http.post(f"/v1/{address}", json=request)
        return len((await modelsim.http.get(f"/_sim/{seen}")).json()["requests"])

    assert await remembered_after(*[9_000] * 5) == 2
    assert await remembered_after(*[10] * 5) == 7
    assert await remembered_after(30_000) == 1
    assert await remembered_after(10) == 1


async def test_answers_begin_as_the_system_prompt_asks(modelsim: ModelSim) -> None:
    messages = [{"role": "system", "content": 'Begin every answer with "Ahoy!"'}, {"role": "user", "content": "Hello"}]

    answer = (await modelsim.http.post("/v1/chat/completions", json={"model": "m", "messages": messages})).json()

    assert answer["choices"][0]["message"]["content"] == f"{ANSWER_PREFIX} Ahoy! You said: Hello"


async def test_whole_and_streamed_answers_have_the_same_words_and_usage(modelsim: ModelSim) -> None:
    whole = (await modelsim.http.post("/v1/chat/completions", json=ask("One  two\nthree"))).json()
    pieces = await streamed(modelsim, "One  two\nthree", stream_options={"include_usage": True})
    again = await streamed(modelsim, "One  two\nthree")

    assert text_of(pieces) == text_of(again) == whole["choices"][0]["message"]["content"]
    assert pieces[-1]["usage"] == whole["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    assert pieces[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in again[-1]


async def test_an_answer_ends_at_max_tokens(modelsim: ModelSim) -> None:
    pieces = await streamed(modelsim, "count to 50", max_tokens=4)

    assert text_of(pieces).split() == [ANSWER_PREFIX, "1", "2", "3"]
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("What are your instructions?", "Be kind."),
        ("Please count to 3", "1 2 3"),
        ("What did I say before?", "nothing"),
    ],
)
async def test_some_messages_have_special_answers(modelsim: ModelSim, message: str, words: str) -> None:
    assert words in text_of(await streamed(modelsim, message))


async def test_a_script_file_takes_precedence_over_the_built_in_answers(tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text('[{"contains": "weather", "answer": "Sunny."}]')

    async with running_modelsim(tmp_path) as sim:
        assert text_of(await streamed(sim, "How is the WEATHER?")) == f"{ANSWER_PREFIX} Sunny."
        assert text_of(await streamed(sim, "And you?")) == f"{ANSWER_PREFIX} You said: And you?"


async def test_an_invalid_script_file_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text('[{"contains": 1}]')

    with pytest.raises(ScriptError, match=r"script\.json: "):
        async with serve(host="127.0.0.1", port=0, home=tmp_path):
            pass


async def test_an_invalid_request_is_refused_in_openai_s_error_format(modelsim: ModelSim) -> None:
    answers = [
        await modelsim.http.post("/v1/chat/completions", json=body)
        for body in ({}, {"model": "m", "messages": []}, ask("x", temperature=3))
    ]
    elsewhere = await modelsim.http.get("/v1/embeddings")

    assert [answer.status_code for answer in answers] == [400, 400, 400]
    assert all(answer.json()["error"]["message"] for answer in answers)
    assert elsewhere.status_code == 404


# --- trouble ---------------------------------------------------------------------------------------------------------


async def test_an_ordered_status_is_answered_as_often_as_ordered_and_only_for_its_model(modelsim: ModelSim) -> None:
    await modelsim.fault("status", status=429, retry_after_s=7, times=2, model="any-name")
    headers = {"Authorization": "Bearer sk-key"}

    other = await modelsim.http.post("/v1/chat/completions", json={**ask("x"), "model": "other"})
    answers = [await modelsim.http.post("/v1/chat/completions", json=ask("x"), headers=headers) for _ in range(3)]

    assert other.status_code == 200
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].headers["retry-after"] == "7"
    assert "sk-key" in answers[0].json()["error"]["message"], "it is there to test that no caller repeats it"


@pytest.mark.parametrize("kind", ["hang", "hold"])
async def test_an_answer_that_hangs_or_is_held_continues_when_released(modelsim: ModelSim, kind: str) -> None:
    await modelsim.fault(kind)

    answering = asyncio.create_task(streamed(modelsim, "Hello"))
    await modelsim.until_requests(1, ended="open")
    await modelsim.release()

    assert text_of(await answering) == f"{ANSWER_PREFIX} You said: Hello"


async def test_a_caller_that_leaves_is_recorded(modelsim: ModelSim) -> None:
    await modelsim.fault("hold", after_tokens=2)

    async with modelsim.http.stream("POST", "/v1/chat/completions", json=ask("a b c", stream=True)) as response:
        async for line in response.aiter_lines():
            if "You" in line:
                break

    (record,) = await modelsim.until_requests(1, ended="left")
    assert record["tokens_sent"] == 2


async def test_a_stream_that_is_cut_breaks_off_without_its_end(modelsim: ModelSim) -> None:
    await modelsim.fault("cut", after_tokens=2)

    with pytest.raises(httpx.RemoteProtocolError):
        await streamed(modelsim, "a b c")

    await modelsim.until_requests(1, ended="cut")


async def test_an_ordered_error_is_sent_inside_the_stream(modelsim: ModelSim) -> None:
    await modelsim.fault("error", after_tokens=1)

    async with modelsim.http.stream("POST", "/v1/chat/completions", json=ask("a", stream=True)) as response:
        lines = [line async for line in response.aiter_lines() if line]

    assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "scripted_error"


async def test_answers_can_be_ordered_without_words_without_usage_or_unstreamed(modelsim: ModelSim) -> None:
    await modelsim.fault("empty")
    await modelsim.fault("no_usage")
    await modelsim.fault("whole")

    empty = await streamed(modelsim, "x")
    unmetered = await streamed(modelsim, "x", stream_options={"include_usage": True})
    whole = await modelsim.http.post("/v1/chat/completions", json=ask("x", stream=True))

    assert text_of(empty) == ""
    assert all("usage" not in piece for piece in unmetered)
    assert whole.headers["content-type"] == "application/json"


async def test_ordered_faults_can_be_listed_and_withdrawn_and_unknown_ones_are_refused(modelsim: ModelSim) -> None:
    await modelsim.fault("endless", times=None)
    listed = (await modelsim.http.get("/_sim/faults")).json()["faults"]
    await modelsim.http.delete("/_sim/faults")
    refused = await modelsim.http.post("/_sim/faults", json={"kind": "juggle"})

    assert [fault["kind"] for fault in listed] == ["endless"]
    assert (await modelsim.http.get("/_sim/faults")).json() == {"faults": []}
    assert refused.status_code == 400
    assert "juggle" in refused.json()["error"]["message"]


async def test_the_modelsim_command_runs_until_sigterm(tmp_path: Path) -> None:
    host, port = free_address()
    words = ("modelsim", "--home", str(tmp_path), "--port", str(port))
    with Command.started(*words, env=dict(os.environ)) as command:
        async with httpx.AsyncClient(
            base_url=f"http://{host}:{port}", trust_env=False, verify=EMPTY_TRUST_STORE
        ) as http:
            await until(lambda: answers(http))
        command.signal(signal.SIGTERM)
        ended = await command.ended()

    assert ended.status == 0
    assert f"Scripted models (no real models) at http://{host}:{port}/v1" in ended.stderr


async def answers(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/v1/models")).is_success
    except httpx.HTTPError:
        return False
