"""How streamed chats end: cut off by agents, left by their callers, and hundreds of them at once."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from events import keys
from hydracore.audit import erasing
from hydracore.audit.erasing import Eraser, ErasureProgress
from hydracore.audit.erasure_file import ErasureFile
from hydracore.transport import EMPTY_TRUST_STORE
from tests.api_server import Api
from tests.chatting import HELLO, PING, SSE, final_error, stream_chat
from tests.instance_fixtures import RunningInstance, running_instance, shared_api_fixture, shared_instance_fixture
from tests.tiny_agent import CUT, STREAM, event
from tests.waiting import PATIENCE_S, until

__all__ = ["shared_api_fixture", "shared_instance_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_stream_that_is_cut_ends_with_an_error_event(instance: RunningInstance) -> None:
    instance.agent.stream = (STREAM[0], b"event: token\ndata: {", CUT)

    status, body = await stream_chat(instance)

    assert status == 200
    assert body.startswith(STREAM[0])
    # The half event is not passed on: the error after it could not be distinguished from it.
    assert b"data: {\n" not in body
    assert final_error(body)["code"] == "agent_failed"


async def test_a_stream_without_a_final_event_gets_an_error_event(instance: RunningInstance) -> None:
    instance.agent.stream = STREAM[:2]

    _, body = await stream_chat(instance)

    assert body.startswith(b"".join(STREAM[:2]))
    assert final_error(body) == {"code": "agent_failed", "detail": "The agent broke off its answer"}


async def test_a_stream_that_falls_silent_ends_with_an_error_event(
    instance: RunningInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.chat.IDLE_TIMEOUT_S", 0.2)
    instance.agent.stream = (STREAM[0], asyncio.Event())

    _, body = await stream_chat(instance)

    assert final_error(body)["code"] == "agent_timeout"


async def test_an_error_event_of_the_agent_is_passed_on(instance: RunningInstance) -> None:
    trouble = event("error", {"code": "model_failed", "detail": "All models failed"})
    instance.agent.stream = (STREAM[0], trouble)

    _, body = await stream_chat(instance)

    assert body == STREAM[0] + trouble


@pytest.mark.parametrize("headers", [{}, SSE], ids=["whole", "streamed"])
async def test_the_request_to_the_agent_ends_when_the_client_disconnects_before_the_answer(
    instance: RunningInstance, headers: dict[str, str]
) -> None:
    instance.agent.may_answer.clear()

    asking = asyncio.create_task(instance.ask("POST", "/chat", HELLO, headers=headers))
    await until(lambda: instance.agent.calls_of("/api/chat"))
    asking.cancel()

    async with asyncio.timeout(PATIENCE_S):
        await instance.agent.caller_left.wait()


async def test_the_request_to_the_agent_ends_when_the_client_disconnects_within_a_stream(
    instance: RunningInstance,
) -> None:
    instance.agent.stream = (STREAM[0], asyncio.Event())

    async with instance.stream() as answer:
        await anext(answer.aiter_raw())
        assert not instance.agent.caller_left.is_set()

    async with asyncio.timeout(PATIENCE_S):
        await instance.agent.caller_left.wait()


async def test_the_erasure_of_a_customer_ends_no_stream(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", 0.0)
    monkeypatch.setattr(erasing, "APPEND_S", 0.0)
    eraser = Eraser(
        api.parts.pool,
        api.parts.store,
        ErasureFile(tmp_path / "erasures.jsonl"),
        actor="operator",
        correlation_id=uuid4(),
        clock=lambda: datetime.now(UTC),
    )
    ignored = ErasureProgress(*(lambda *_: None for _ in ErasureProgress._fields))
    go_on = asyncio.Event()
    async with running_instance(api, user="carol", system_prompt="You know that Carol is ill.") as instance:
        instance.agent.stream = (STREAM[0], go_on, *STREAM[1:])
        chat = asyncio.create_task(stream_chat(instance, headers=api.token(user="carol")))
        await until(lambda: instance.agent.calls_of("/api/chat"))

        customer = await erasing.find_customer(api.parts.pool, "carol", tenant_id=api.tenant)
        erased = await eraser.erase(customer, ignored)

        assert (erased.key_destroyed, erased.recorded, chat.done()) == (True, 1, False)
        go_on.set()
        assert await chat == (200, b"".join(STREAM))


async def test_streams_hold_no_connection_to_the_database(instance: RunningInstance) -> None:
    go_on = asyncio.Event()
    instance.agent.stream = (STREAM[0], go_on, *STREAM[1:])
    chats = [asyncio.create_task(stream_chat(instance)) for _ in range(50)]
    await until(lambda: len(instance.agent.calls_of("/api/chat")) == len(chats))

    detail = await instance.ask("GET", "")
    busy = instance.api.parts.pool.get_stats()

    assert detail.status_code == 200
    assert busy["pool_available"] == busy["pool_size"]
    go_on.set()
    assert {await chat for chat in chats} == {(200, b"".join(STREAM))}


async def test_two_hundred_streams_run_at_once(instance: RunningInstance) -> None:
    go_on = asyncio.Event()
    instance.agent.stream = (STREAM[0], go_on, *STREAM[1:])
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=instance.api.url, timeout=PATIENCE_S, limits=limits, verify=EMPTY_TRUST_STORE
    ) as client:
        url, headers = f"/v1/instances/{instance.instance_id}/chat", {**instance.api.token(), **SSE}
        chats: list[asyncio.Task[httpx.Response]] = []
        # They come some at a time and all stay: it is open streams, not a rush, that a control plane has to bear.
        for wanted in range(20, 201, 20):
            chats += [asyncio.create_task(client.post(url, json=HELLO, headers=headers)) for _ in range(20)]
            await until(lambda wanted=wanted: len(instance.agent.calls_of("/api/chat")) == wanted)
        assert len(chats) == 200
        status = await instance.ask("GET", "/runtime")
        go_on.set()
        answers = await asyncio.gather(*chats)

    assert status.json()["uptime_seconds"] == 5
    # While they wait for the last to come, the first ones may get a sign of life.
    assert {(answer.status_code, answer.content.replace(PING, b"")) for answer in answers} == {(200, b"".join(STREAM))}
