"""Idempotency keys of chats: a repeat gets the same answer without a second model call, and end users do not share keys."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

from hydracore.agent.chats import Question
from hydracore.agent.expressclaw.service import ChatService
from hydracore.agent.expressclaw.setup import make_setup
from hydracore.agent.expressclaw.store import Store
from hydracore.agent.runtime import RuntimeConfig
from hydracore.clock import now_ms
from hydracore.modelsim.script import ANSWER_PREFIX
from tests.claw_fixtures import Claw, claw_fixture, control_plane_fixture, document, joined_text, modelsim_fixture
from tests.modelsim_fixtures import ModelSim
from tests.waiting import PATIENCE_S

__all__ = ["claw_fixture", "control_plane_fixture", "modelsim_fixture"]


async def test_a_repeat_with_the_same_key_gets_the_same_answer_without_another_model_call(
    claw: Claw, modelsim: ModelSim
) -> None:
    first = await claw.chat("Hello", key="k-1")
    again = await claw.chat("Hello", key="k-1")
    said, (name, streamed) = await joined_text(claw.stream("Hello", key="k-1"))

    assert first == again == streamed
    assert (name, said) == ("done", first["message"])
    assert len(await modelsim.requests()) == 1
    assert await claw.refused("Something else", key="k-1") == (409, "idempotency_mismatch")


async def test_each_end_user_has_separate_idempotency_keys(claw: Claw, modelsim: ModelSim) -> None:
    await modelsim.fault("hold", contains="Anna")
    annas = asyncio.create_task(claw.chat("Anna here", key="1", end_user="anna"))
    await modelsim.until_requests(1)

    berts = await claw.chat("Bert here", key="1", end_user="bert")
    owners = await claw.chat("Nobody else here", key="1")
    await modelsim.release()
    await annas

    assert await claw.chat("Anna here", key="1", end_user="anna") == await annas
    assert await claw.chat("Bert here", key="1", end_user="bert") == berts
    assert await claw.chat("Nobody else here", key="1") == owners
    assert len(await modelsim.requests()) == 3
    assert await claw.refused("Something else", key="1", end_user="anna") == (409, "idempotency_mismatch")


async def test_a_concurrent_repeat_with_the_same_key_waits_for_the_first_request(
    claw: Claw, modelsim: ModelSim
) -> None:
    await modelsim.fault("hold", after_tokens=1)

    first = asyncio.create_task(claw.chat("Hello", key="k-2"))
    await modelsim.until_requests(1, ended="open")
    second = asyncio.create_task(claw.chat("Hello", key="k-2"))
    stream = asyncio.create_task(joined_text(claw.stream("Hello", key="k-2")))
    assert await claw.refused("Something else", key="k-2") == (409, "idempotency_mismatch")
    # The first goes away; the others still want the answer.
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await modelsim.release()

    said, (_, answer) = await stream
    assert answer == await second
    assert said == answer["message"]
    assert len(await modelsim.requests()) == 1


async def test_a_key_may_be_used_again_after_its_chat_failed(claw: Claw, modelsim: ModelSim) -> None:
    await modelsim.fault("status", times=2)
    assert await claw.refused("Hello", conversation_id="r-1", key="k-3") == (502, "model_failed")

    answer = await claw.chat("Hello", "r-1", key="k-3")

    assert await claw.conversation("r-1") == [("user", "Hello"), ("assistant", answer["message"])]


async def test_a_caller_who_leaves_and_repeats_at_once_is_answered_and_both_calls_are_metered(
    modelsim: ModelSim, tmp_path: Path
) -> None:
    store = Store(tmp_path / "chats.sqlite", now_ms=now_ms, new_id=uuid4)
    setup = make_setup(RuntimeConfig(type="expressclaw", version=1, settings=document(modelsim)))
    chats = ChatService(store)
    question = Question(message="Hello", conversation_id=None, end_user=None, channel="api", key="k")
    await modelsim.fault("hang")

    with chats.open(question, setup).listening():
        await modelsim.until_requests(1)
    again = chats.open(question, setup)
    async with asyncio.timeout(PATIENCE_S):
        with again.listening():
            answer = await again.answer()
    batch = await store.ledger.next_batch()

    await chats.stop()
    store.close()
    assert answer.message == f"{ANSWER_PREFIX} You said: Hello"
    assert batch is not None
    assert len(batch.entries) == 2


async def test_a_caller_who_leaves_repeats_and_leaves_again_causes_no_error(modelsim: ModelSim, tmp_path: Path) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    store = Store(tmp_path / "chats.sqlite", now_ms=now_ms, new_id=uuid4)
    setup = make_setup(RuntimeConfig(type="expressclaw", version=1, settings=document(modelsim)))
    chats = ChatService(store)
    question = Question(message="Hello", conversation_id=None, end_user=None, channel="api", key="k")
    await modelsim.fault("hang")

    with chats.open(question, setup).listening():
        await modelsim.until_requests(1)
    with chats.open(question, setup).listening():
        pass
    await chats.wait_until_idle()

    await chats.stop()
    store.close()
    assert complaints == []
