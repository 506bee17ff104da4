"""Idempotency keys of chats, as they are stored."""

from __future__ import annotations

import itertools
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from hydracore.agent.chat_api import caller_key
from hydracore.agent.chat_messages import ChatAnswer, TokenUsage
from hydracore.agent.chats import Question
from hydracore.agent.expressclaw.store import Store
from hydracore.agent.expressclaw.turns import OpenTurn, Reply
from hydracore.clock import now_ms


def test_each_pair_of_user_and_key_gets_a_stored_key_of_its_own() -> None:
    users = [None, "a", "a:b", "1:a", "", "é"]
    keys = ["k", "a:k", "1:a:k", ":k"]

    made = [caller_key(user, key) for user, key in itertools.product(users, keys)]

    assert len(set(made)) == len(made)


@pytest.mark.parametrize("end_user", [None, "zoë"])
async def test_an_answer_stored_under_an_old_style_key_is_found_again_by_its_own_user_only(
    tmp_path: Path, end_user: str | None
) -> None:
    path = tmp_path / "chats.sqlite"
    key = caller_key(end_user, "k")
    first = await begin(path, end_user, key)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE turn SET key = 'api:k'")

    again = await begin(path, end_user, key)
    other_user = await begin(path, "bert", caller_key("bert", "k"))

    assert (first, again) == (None, "Hello you")
    assert other_user is None


async def begin(path: Path, end_user: str | None, key: str) -> str | None:
    """Ask with a newly opened store: return the stored answer, or store one and return None."""
    store = Store(path, now_ms=now_ms, new_id=uuid4)
    question = Question(message="Hello", conversation_id=None, end_user=end_user, channel="api", key=key)
    begun = await store.turns.begin(
        question, conversation_id="c-1", digest="d", estimate=lambda left: None, check_budget=lambda db: None
    )
    if isinstance(begun, OpenTurn):
        usage = TokenUsage(prompt_tokens=1, completion_tokens=2, cost_usd="0")
        await store.turns.close(begun, "done", reply=Reply("Hello you", "m", usage), spent=None)
    store.close()
    return begun.message if isinstance(begun, ChatAnswer) else None
