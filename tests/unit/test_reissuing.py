"""Whether an instance still depends on a former master key."""

from __future__ import annotations

from uuid import UUID

import pytest

from events.commands import AnyCommand
from events.master_keys import MasterKeys
from hydracore import tokens
from hydracore.reissuing import key_status
from tests import lives

OLD, NEW = bytes(range(32)), bytes(range(1, 33))


def key_hash(master_key: bytes, instance_id: UUID, key_id: UUID) -> str:
    return tokens.hash_token(tokens.agent_key(master_key, instance_id, key_id)).hex()


ADA = lives.instance_id()
BY_OLD, BY_NEW = (key_hash(key, ADA, lives.KEY) for key in (OLD, NEW))
INTENT = lives.plan(enrol_token_hash=tokens.hash_token(tokens.enrol_token(OLD, ADA, 1, "nonce-1")).hex())
ENROLLED = (lives.request(), INTENT, lives.created(), lives.enrol(token_hash=INTENT.enrol_token_hash))
OLD_RUNS = (*ENROLLED, lives.issue(key_hash=BY_OLD), lives.acknowledge(), lives.mark_ready())
SECOND = lives.issue(lives.SECOND_KEY, key_hash=key_hash(NEW, ADA, lives.SECOND_KEY))


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ((lives.request(),), "none"),
        ((lives.request(), INTENT), "passing"),
        (ENROLLED, "none"),
        ((*ENROLLED, lives.issue(key_hash=BY_OLD)), "former"),
        ((*ENROLLED, lives.issue(key_hash=BY_NEW)), "present"),
        ((*ENROLLED, lives.issue()), "unknown"),
        (OLD_RUNS, "former"),
        ((*OLD_RUNS, lives.rotate_key()), "awaited"),
        ((*OLD_RUNS, lives.rotate_key(), SECOND), "awaited"),
        ((*OLD_RUNS, lives.rotate_key(), SECOND, lives.acknowledge(lives.SECOND_KEY)), "present"),
        ((*OLD_RUNS, lives.vanished()), "none"),
        ((*OLD_RUNS, lives.delete()), "passing"),
        ((*OLD_RUNS, lives.delete(), lives.teardown("key_revoked"), lives.teardown("drained")), "none"),
    ],
)
def test_key_status_tells_at_each_step_of_a_life_whether_the_former_key_is_needed(
    commands: tuple[AnyCommand, ...], expected: str
) -> None:
    state = lives.Life.after(*commands).state

    assert key_status(state, MasterKeys(NEW, [OLD])) == expected
