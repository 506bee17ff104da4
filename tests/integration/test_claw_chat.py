"""Chats with a real agent and scripted models: whole and streamed, with memory and fallbacks."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from decimal import Decimal
from typing import Any

import httpx
import pytest

from hydracore.modelsim.app import key_digest
from hydracore.modelsim.script import ANSWER_PREFIX
from tests.claw_fixtures import (
    API_KEY,
    Claw,
    claw_fixture,
    control_plane_fixture,
    document,
    joined_text,
    modelsim_fixture,
    shorten_model_timeout,
)
from tests.fake_control_plane import FakeControlPlane
from tests.modelsim_fixtures import ModelSim

__all__ = ["claw_fixture", "control_plane_fixture", "modelsim_fixture"]


async def test_a_chat_is_answered_with_its_usage_and_cost(claw: Claw, modelsim: ModelSim) -> None:
    answer = await claw.chat("Hello there", "c-1")

    assert answer["conversation_id"] == "c-1"
    assert answer["message"] == f"{ANSWER_PREFIX} You said: Hello there"
    assert answer["model"] == "first"
    (request,) = await modelsim.requests()
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (request["prompt_tokens"], 5)
    assert Decimal(usage["cost_usd"]) == (request["prompt_tokens"] * 1000 + 5 * 2000) / Decimal(1_000_000)
    assert (request["temperature"], request["max_tokens"], request["stream"]) == (0.5, 500, True)
    assert request["key_digest"] == key_digest(f"Bearer {API_KEY}")


async def test_the_prompt_has_all_parts_in_order(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    recipe = {"id": "r", "prompt": "Work so, says the recipe."}
    platform = {"skills": ["meeting-notes", {"id": "task-planning", "enabled": False}, "unheard-of"]}
    changed = document(modelsim, recipe=recipe, platform=platform, customer_facing_prompt="Customers are kings.")
    await claw.http.put("/api/config", json={"config_version": 4, "runtime": changed})
    control_plane.runtime = changed

    said = (await claw.chat("What are your instructions?"))["message"]

    parts = [
        "Be brief, says the preset.",
        "Your name is Ada.",
        "Work so, says the recipe.",
        "Owner's words, known to nobody.",
        "## Skill: Meeting notes",
        "## How you talk to the people you serve\n\nCustomers are kings.",
        "Today is 2",
    ]
    places = [said.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)
    assert "Task planning" not in said
    assert (await claw.status())["skills_loaded"] == ["meeting-notes"]


async def test_a_conversation_is_remembered_and_listed(claw: Claw, modelsim: ModelSim) -> None:
    begun = await claw.chat("My cat is called Tom")
    conversation_id = begun["conversation_id"]
    other = await claw.chat("Unrelated", "other:1")
    answer = await claw.chat("What did I say before?", conversation_id)

    assert answer["message"] == f"{ANSWER_PREFIX} Before that you said: My cat is called Tom"
    listed = (await claw.http.get("/api/conversations", params={"limit": 2})).json()["conversations"]
    assert [(one["id"], one["message_count"]) for one in listed] == [
        (conversation_id, 4),
        (other["conversation_id"], 2),
    ]
    assert listed[0]["preview"] == answer["message"]
    detail = (await claw.http.get(f"/api/conversations/{conversation_id}")).json()
    assert [message["role"] for message in detail["messages"]] == ["user", "assistant"] * 2
    assert detail["messages"][0].items() >= {"content": "My cat is called Tom", "model": None, "usage": None}.items()
    assert detail["messages"][3].items() >= {"model": "first", "usage": answer["usage"]}.items()
    assert detail["created_at"] <= detail["messages"][0]["created_at"] <= detail["updated_at"]
    assert detail["created_at"].endswith("Z")


async def test_a_stream_comes_token_by_token_and_ends_with_the_whole_answer(claw: Claw, modelsim: ModelSim) -> None:
    await modelsim.fault("hold", after_tokens=3)

    events = claw.stream("Hello there you", "s-1")
    async with aclosing(events):
        first = await anext(events)
        # The model has said three words and no more, and they are here already.
        said = first[1]["text"]
        while said != f"{ANSWER_PREFIX} You said: ":
            said += (await anext(events))[1]["text"]
        await modelsim.release()
        rest, (name, done) = await joined_text(events)

    assert first[0] == "token"
    assert name == "done"
    assert done["message"] == said + rest == f"{ANSWER_PREFIX} You said: Hello there you"
    assert await claw.conversation("s-1") == [("user", "Hello there you"), ("assistant", done["message"])]
    assert set(done) == {"conversation_id", "message", "model", "usage"}


FAULTS: list[dict[str, Any]] = [
    {"kind": "status", "status": 429},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 401},
    {"kind": "hang"},
    {"kind": "cut"},
    {"kind": "error"},
    {"kind": "garbage"},
    {"kind": "empty"},
]


@pytest.mark.parametrize("streamed", [True, False])
async def test_the_next_model_is_asked_when_one_fails(claw: Claw, modelsim: ModelSim, *, streamed: bool) -> None:
    await shorten_model_timeout(claw, modelsim)

    for fault in FAULTS:
        await modelsim.fault(**fault, model="first")
        await modelsim.http.delete("/_sim/requests")
        if streamed:
            said, (_, answer) = await joined_text(claw.stream("Hello"))
            assert said == answer["message"]
        else:
            answer = await claw.chat("Hello")
        assert (answer["model"], answer["message"]) == ("second", f"{ANSWER_PREFIX} You said: Hello"), fault
        assert [request["model"] for request in await modelsim.requests()] == ["first", "second"], fault


async def test_fallbacks_are_asked_in_order_and_no_model_twice(claw: Claw, modelsim: ModelSim) -> None:
    await shorten_model_timeout(claw, modelsim, fallbacks=["third", "first", "second"])
    await modelsim.fault("status", status=429, model="first")
    await modelsim.fault("status", status=500, model="third")

    answer = await claw.chat("Hello")

    assert answer["model"] == "second"
    assert [request["model"] for request in await modelsim.requests()] == ["first", "third", "second"]


async def test_when_all_models_fail_the_error_says_why_without_secrets(claw: Claw, modelsim: ModelSim) -> None:
    await modelsim.fault("status", status=401, times=2)

    answer = await claw.ask("Hello", "f-1")

    assert answer.status_code == 502
    assert answer.json() == {
        "code": "model_failed",
        "detail": "No model gave an answer: first: the endpoint rejects the API key (HTTP 401); "
        "second: the endpoint rejects the API key (HTTP 401)",
    }
    assert await claw.conversation("f-1") == [("user", "Hello")]


async def test_a_chat_without_a_model_endpoint_fails_with_the_reason(claw: Claw, modelsim: ModelSim) -> None:
    changed = document(modelsim, model={"base_url": None, "api_key": None})
    await claw.http.put("/api/config", json={"config_version": 4, "runtime": changed})

    answer = await claw.ask("Hello")

    assert (answer.status_code, answer.json()["detail"]) == (502, "No model is configured")


async def test_questions_of_one_conversation_are_answered_one_after_the_other(claw: Claw, modelsim: ModelSim) -> None:
    await modelsim.fault("hold", contains="one")

    first = asyncio.create_task(claw.chat("This is one", "o-1"))
    await modelsim.until_requests(1)
    second = asyncio.create_task(claw.chat("What did I say before?", "o-1"))
    await claw.chat("Elsewhere nobody waits", "o-2")
    assert not second.done()
    await modelsim.release()

    await first
    assert (await second)["message"] == f"{ANSWER_PREFIX} Before that you said: This is one"


BAD_BODIES: list[tuple[bytes, int]] = [
    (b"", 422),
    (b"{", 422),
    (b"[]", 422),
    (b"{}", 422),
    (b'{"message": ""}', 422),
    (b'{"message": 5}', 422),
    (b'{"message": "x", "conversation_id": "a/b"}', 422),
    (b'{"message": "x", "conversation_id": "a\\n"}', 422),
    (b'{"message": "x", "conversation_id": ""}', 422),
    (b'{"message": "x", "conversation_id": "%s"}' % (b"c" * 129), 422),
    (b'{"message": "x", "end_user": ""}', 422),
    (b'{"message": "\\ud800"}', 422),
    (b'{"message": "x", "end_user": null, "more": ' + b"[" * 100_000, 422),
    (b'{"message": "%s"}' % (b"x" * 8001), 413),
    (b'{"message": "%s"}' % (b"x" * 3_000_000), 413),
]


async def test_a_bad_request_is_refused_and_leaves_no_conversation(claw: Claw) -> None:
    for body, status in BAD_BODIES:
        answer = await claw.http.post("/api/chat", content=body)

        assert answer.status_code == status, body[:50]
        assert answer.json()["code"] == {422: "bad_request", 413: "too_large"}[status]
        assert answer.json()["detail"]

    assert (await claw.http.get("/api/conversations")).json() == {"conversations": []}


async def test_invalid_limits_ids_keys_and_methods_are_refused(claw: Claw) -> None:
    answers = [
        await claw.http.get(path)
        for path in (
            "/api/conversations?limit=0",
            "/api/conversations?limit=x",
            "/api/conversations?limit=201",
            # More digits than Python makes a number of.
            f"/api/conversations?limit={'9' * 5000}",
            "/api/conversations/none",
            "/api/conversations/a%2Fb",
            "/api/conversations/a%20b",
            "/api/conversations/",
        )
    ]
    key = await claw.ask("Hello", key="x" * 201)

    assert [answer.status_code for answer in answers] == [422, 422, 422, 422, 404, 404, 404, 404]
    assert key.status_code == 422
    assert (await claw.http.delete("/api/chat")).json()["code"] == "method_not_allowed"


async def test_requests_without_the_token_are_refused(claw: Claw) -> None:
    async with httpx.AsyncClient(base_url=claw.http.base_url, trust_env=False) as stranger:
        answers = [
            await stranger.post("/api/chat", json={"message": "x"}),
            await stranger.get("/api/conversations"),
            await stranger.put("/api/config", json={}),
            await stranger.post("/api/updates/apply", json={}),
        ]

    assert [answer.json()["code"] for answer in answers] == ["unauthorized"] * 4
