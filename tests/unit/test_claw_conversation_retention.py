"""How many conversations an agent keeps, and which ones it deletes."""

from __future__ import annotations

from collections.abc import Generator
from itertools import count
from pathlib import Path
from uuid import uuid4

import pytest

from hydracore.agent.chats import Question
from hydracore.agent.expressclaw import turns
from hydracore.agent.expressclaw.store import STORE_FILE, Store
from hydracore.agent.expressclaw.turns import OpenTurn, Reply
from tests.unit.test_claw_ledger import entry


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Store]:
    monkeypatch.setattr(turns, "CONVERSATIONS_MAX", 5)
    monkeypatch.setattr(turns, "DELETED_AT_ONCE", 2)
    # A clock that goes back at each reading.
    clock = count(2_000_000_000_000, -1000)
    store = Store(tmp_path / STORE_FILE, now_ms=lambda: next(clock), new_id=uuid4)
    yield store
    store.close()


async def begin(store: Store, conversation_id: str, *, key: str | None = None) -> OpenTurn:
    question = Question(message="Hello", conversation_id=conversation_id, end_user=None, channel="api", key=key)
    begun = await store.turns.begin(
        question, conversation_id=conversation_id, digest="d", estimate=lambda left: None, check_budget=lambda db: None
    )
    assert isinstance(begun, OpenTurn)
    return begun


async def finish(store: Store, begun: OpenTurn) -> None:
    spent = entry("1")
    await store.turns.close(begun, "done", reply=Reply.of("Hello you", spent), spent=spent)


async def kept(store: Store) -> set[str]:
    return {summary.id for summary in await store.turns.latest_conversations(100)}


async def test_the_least_recently_used_conversations_are_deleted_even_if_the_clock_goes_back(store: Store) -> None:
    for name in ["a", "b", "c", "d", "e", "a"]:
        await finish(store, await begin(store, name))
    assert await kept(store) == {"a", "b", "c", "d", "e"}

    await finish(store, await begin(store, "f"))

    assert await kept(store) == {"a", "d", "e", "f"}
    assert await store.turns.conversation("b") is None
    # Its cost is still reported.
    batch = await store.ledger.next_batch()
    assert batch is not None
    assert len(batch.entries) == 7


async def test_a_conversation_whose_answer_is_in_progress_is_kept(store: Store) -> None:
    slow = await begin(store, "slow")
    for name in ["a", "b", "c", "d", "e", "f"]:
        await finish(store, await begin(store, name))

    await finish(store, slow)

    assert await kept(store) == {"slow", "c", "d", "e", "f"}
    found = await store.turns.conversation("slow")
    assert found is not None
    assert [message.content for message in found.messages] == ["Hello", "Hello you"]
