"""Chats with a real agent that end early: slow models, callers who leave, endless answers."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from hydracore.agent import endpoints
from hydracore.agent.expressclaw.store import STORE_FILE
from hydracore.agent.state import STATE_DIR
from hydracore.modelsim.script import ANSWER_PREFIX
from tests.claw_fixtures import (
    Claw,
    claw_fixture,
    control_plane_fixture,
    joined_text,
    modelsim_fixture,
    shorten_model_timeout,
)
from tests.fake_control_plane import FakeControlPlane
from tests.modelsim_fixtures import ModelSim
from tests.waiting import until

__all__ = ["claw_fixture", "control_plane_fixture", "modelsim_fixture"]


async def test_a_timeout_of_all_models_is_reported_and_their_prompts_are_metered(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    await shorten_model_timeout(claw, modelsim)
    await modelsim.fault("hang", times=2)

    status, code = await claw.refused("Hello")

    assert (status, code) == (504, "model_timeout")
    await modelsim.until_requests(2, ended="left")
    await control_plane.until(lambda: len(control_plane.metered()) == 2)
    assert [(entry["model"], entry["completion_tokens"]) for entry in control_plane.metered()] == [
        ("first", 0),
        ("second", 0),
    ]


@pytest.mark.parametrize("then", ["error", "cut", "garbage"])
async def test_a_model_error_in_a_stream_is_sent_as_an_event_and_the_words_before_it_are_kept(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, then: str
) -> None:
    await modelsim.fault("hold", after_tokens=2, then=then)

    async with aclosing(claw.stream("Hello", "e-1")) as events:
        _, token = await anext(events)
        await modelsim.release()
        rest, (name, error) = await joined_text(events)

    assert name == "error"
    assert error["code"] == "model_failed"
    said = token["text"] + rest
    assert said == f"{ANSWER_PREFIX} You "
    assert await claw.conversation("e-1") == [("user", "Hello"), ("assistant", said)]
    # The caller has received the words, so no other model is asked, and they are metered.
    assert len(await modelsim.requests()) == 1
    await control_plane.until(lambda: len(control_plane.metered()) == 1)


async def test_a_caller_who_leaves_a_stream_stops_the_model_and_the_words_are_kept_and_metered(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    await modelsim.fault("hold", after_tokens=3)

    async with aclosing(claw.stream("Hello", "left-1")) as events:
        said = ""
        while said != f"{ANSWER_PREFIX} You said: ":
            said += (await anext(events))[1]["text"]

    (request,) = await modelsim.until_requests(1, ended="left")
    assert request["tokens_sent"] == 3
    await until(lambda: idle(claw))
    assert await claw.conversation("left-1") == [("user", "Hello"), ("assistant", said)]
    await control_plane.until(lambda: len(control_plane.metered()) == 1)
    (entry,) = control_plane.metered()
    assert entry["conversation_id"] == "left-1"
    assert entry["completion_tokens"] == -(-len(said) // 4), "an estimate: the endpoint's figure comes last"


async def test_a_caller_who_leaves_before_the_first_word_stops_the_model_too(claw: Claw, modelsim: ModelSim) -> None:
    await modelsim.fault("hang")

    asking = asyncio.create_task(claw.ask("Hello"))
    await modelsim.until_requests(1, ended="open")
    asking.cancel()

    await modelsim.until_requests(1, ended="left")
    await until(lambda: idle(claw))


async def test_a_drain_that_cuts_chats_returns_once_the_control_plane_knows_their_cost(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    await modelsim.fault("hold", after_tokens=2, times=2)
    asking = asyncio.create_task(claw.ask("Hello", "cut-1"))
    async with aclosing(claw.stream("Hello", "cut-2")) as events:
        _, token = await anext(events)
        await modelsim.until_requests(2, tokens_sent=2)
        drained = await claw.http.post("/api/drain", json={"cut": True})
        metered = control_plane.metered()
        rest, (name, error) = await joined_text(events)
    refused = await asking

    assert drained.json() == {"active_connections": 0, "usage_unsent": False}
    assert {entry["conversation_id"] for entry in metered} == {"cut-1", "cut-2"}
    assert (name, error["code"]) == ("error", "interrupted")
    assert (refused.status_code, refused.json()["code"]) == (503, "interrupted")
    assert await claw.conversation("cut-2") == [("user", "Hello"), ("assistant", token["text"] + rest)]
    assert await claw.refused("Hello") == (503, "draining")


async def test_a_drain_that_cuts_chats_waits_only_a_limited_time_for_usage_to_be_accepted(
    control_plane: FakeControlPlane, claw: Claw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "INTERRUPT_TIMEOUT_S", 0.1)
    telling = control_plane.hold("usage", "before")
    await claw.chat("Hello")
    await telling.reached.wait()

    drained = await claw.http.post("/api/drain", json={"cut": True})
    malformed = await claw.http.post("/api/drain", json={"cut": "perhaps"})
    telling.released.set()

    assert drained.json() == {"active_connections": 0, "usage_unsent": True}
    assert (malformed.status_code, malformed.json()["code"]) == (422, "bad_request")


@pytest.mark.parametrize(
    ("body", "framing"),
    [
        (b"", b"Content-Length: 14"),
        (b"", b"Transfer-Encoding: chunked"),
        (b"2\r\n{}\r\n", b"Transfer-Encoding: chunked"),
    ],
)
async def test_a_drain_request_with_a_truncated_body_drains_nothing(
    control_plane: FakeControlPlane, claw: Claw, body: bytes, framing: bytes
) -> None:
    host, port = control_plane.listen
    token = control_plane.control_token.encode()
    head = (
        b"POST /api/drain HTTP/1.1\r\nHost: agent\r\nAuthorization: Bearer " + token + b"\r\n" + framing + b"\r\n\r\n"
    )

    reader, writer = await asyncio.open_connection(host, port)
    writer.write(head + body)
    writer.write_eof()
    # When the agent closes the connection, it has noticed that nothing more comes.
    heard = await reader.read()
    writer.close()

    assert heard == b""
    assert (await claw.chat("Hello"))["message"] == f"{ANSWER_PREFIX} You said: Hello"


async def test_a_drain_that_cuts_chats_waits_only_a_limited_time_for_a_locked_database(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "INTERRUPT_TIMEOUT_S", 0.1)
    await modelsim.fault("hold", after_tokens=2)
    asking = asyncio.create_task(claw.ask("Hello"))
    await modelsim.until_requests(1, tokens_sent=2)

    with closing(sqlite3.connect(tmp_path / "vps" / STATE_DIR / STORE_FILE, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        drained = await claw.http.post("/api/drain", json={"cut": True})
    refused = await asking

    assert drained.json() == {"active_connections": 1, "usage_unsent": True}
    assert (refused.status_code, refused.json()["code"]) == (503, "interrupted")
    await control_plane.until(lambda: len(control_plane.metered()) == 1)


async def test_an_answer_without_usage_figures_is_metered_by_estimate(claw: Claw, modelsim: ModelSim) -> None:
    await modelsim.fault("no_usage")

    answer = await claw.chat("Hello")

    assert answer["usage"]["completion_tokens"] == -(-len(answer["message"]) // 4)
    assert answer["usage"]["prompt_tokens"] > 0


async def test_an_endpoint_that_does_not_stream_is_supported(claw: Claw, modelsim: ModelSim) -> None:
    await modelsim.fault("whole")

    said, (name, answer) = await joined_text(claw.stream("Hello"))

    assert (name, answer["message"]) == ("done", said)
    assert said == f"{ANSWER_PREFIX} You said: Hello"


async def test_an_endless_answer_is_cut_at_a_limit(claw: Claw, modelsim: ModelSim) -> None:
    await modelsim.fault("endless")

    answer = await claw.chat("lo" * 1000)

    assert len(answer["message"]) == 100_000
    await modelsim.until_requests(1, ended="left")


async def idle(claw: Claw) -> bool:
    return (await claw.status())["active_connections"] == 0
