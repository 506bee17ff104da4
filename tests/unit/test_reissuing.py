"""Whether an instance still depends on a former master key."""

from __future__ import annotations

from uuid import UUID

import pytest

from events.commands import AnyCommand
from events.master_keys import MasterKeys
from hydracore import tokens
from hydracore.reissuing import key_status
from tests import lifecycle

OLD, NEW = bytes(range(32)), bytes(range(1, 33))


def key_hash(master_key: bytes, instance_id: UUID, key_id: UUID) -> str:
    return tokens.hash_token(tokens.agent_key(master_key, instance_id, key_id)).hex()


ADA = lifecycle.instance_id()
BY_OLD, BY_NEW = (key_hash(key, ADA, lifecycle.KEY) for key in (OLD, NEW))
INTENT = lifecycle.plan(enrol_token_hash=tokens.hash_token(tokens.enrol_token(OLD, ADA, 1, "nonce-1")).hex())
ENROLLED = (lifecycle.request(), INTENT, lifecycle.created(), lifecycle.enrol(token_hash=INTENT.enrol_token_hash))
OLD_RUNS = (*ENROLLED, lifecycle.issue(key_hash=BY_OLD), lifecycle.acknowledge(), lifecycle.mark_ready())
SECOND = lifecycle.issue(lifecycle.SECOND_KEY, key_hash=key_hash(NEW, ADA, lifecycle.SECOND_KEY))


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ((lifecycle.request(),), "none"),
        ((lifecycle.request(), INTENT), "passing"),
        (ENROLLED, "none"),
        ((*ENROLLED, lifecycle.issue(key_hash=BY_OLD)), "former"),
        ((*ENROLLED, lifecycle.issue(key_hash=BY_NEW)), "present"),
        ((*ENROLLED, lifecycle.issue()), "unknown"),
        (OLD_RUNS, "former"),
        ((*OLD_RUNS, lifecycle.rotate_key()), "awaited"),
        ((*OLD_RUNS, lifecycle.rotate_key(), SECOND), "awaited"),
        ((*OLD_RUNS, lifecycle.rotate_key(), SECOND, lifecycle.acknowledge(lifecycle.SECOND_KEY)), "present"),
        ((*OLD_RUNS, lifecycle.vanished()), "none"),
        ((*OLD_RUNS, lifecycle.delete()), "passing"),
        ((*OLD_RUNS, lifecycle.delete(), lifecycle.teardown("key_revoked"), lifecycle.teardown("drained")), "none"),
    ],
)
def test_key_status_tells_at_each_step_of_a_life_whether_the_former_key_is_needed(
    commands: tuple[AnyCommand, ...], expected: str
) -> None:
    state = lifecycle.InMemoryInstance.after(*commands).state

    assert key_status(state, MasterKeys(NEW, [OLD])) == expected
