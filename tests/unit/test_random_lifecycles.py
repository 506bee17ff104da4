"""Any sequence of commands keeps an instance within its lifecycle, and its state equal to the fold of its events."""

from __future__ import annotations

from contextlib import suppress

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from events import commands as c
from events import stream_state
from events import types as e
from events.codec import decode, encode
from events.decide import decide
from events.errors import Rejected
from events.evolve import evolve
from events.lifecycle import TRANSITIONS
from events.master_keys import MasterKeys
from events.saga import Idle, next_step, wake_at_ms
from events.state import ATTEMPTS_MAX, TEARDOWN_STEPS, Instance
from hydracore.reissuing import IRRELEVANT_EVENTS, key_status
from projections.instance import row_of
from tests.random_lifecycles import SEALED, InstanceIdentity, Move, command_of, erasure, moves

STEPS = {(source, destination) for _, source, destination in TRANSITIONS}

#: Commands that are recorded each time, even when they are repeated.
RECORDS = (c.RecordConversationsAccess, c.RequestUpdates, c.RecordUpdatesApplied, c.RecordUpdatesFailed)

MASTER_KEYS = MasterKeys(bytes(32), [])


class Witness:
    """Applies one move after the other to an instance and checks what must always hold."""

    def __init__(self) -> None:
        self.who = InstanceIdentity("acme", "ada")
        self.now: Instance | None = None
        self.events: list[e.AnyEvent] = []

    def live(self, move: Move) -> None:
        command = command_of(move, self.who, self.now)
        try:
            events = decide(self.now, command, stream_id=self.who.id)
        except Rejected:
            return
        assert events == decide(self.now, command, stream_id=self.who.id), "a decision depends on its arguments alone"
        for event in events:
            self._fold(event)
        if not isinstance(command, RECORDS):
            self._check_repeat(command)

    def _fold(self, event: e.AnyEvent) -> None:
        before, self.now = self.now, evolve(self.now, event, stream_id=self.who.id)
        self.events.append(event)
        assert self.now.version == len(self.events)
        assert stream_state.decode(stream_state.encode(self.now)) == self.now
        if before is not None and before.status != self.now.status:
            assert (before.status, self.now.status) in STEPS
        if isinstance(event, e.ServerIntended):
            assert before is not None
            assert before.attempt is not None
            assert not before.attempt.may_have_server, "one server at a time"

    def loaded(self) -> Instance | None:
        """The state as another process loads it."""
        state: Instance | None = None
        for event in self.events:
            state = evolve(state, decode(encode(event)), stream_id=self.who.id)
        return state

    def _check_repeat(self, command: c.AnyCommand) -> None:
        assert self.now is not None
        if self.now.erased_ms is not None and SEALED.encode() in msgspec.json.encode(command):
            return  # A sealed value after the erasure is recorded each time, and not kept.
        with suppress(Rejected):
            assert decide(self.now, command, stream_id=self.who.id) == (), "a repeated command adds no event"


def check(state: Instance) -> None:
    """What holds for every instance at any time."""
    attempt, agent = state.attempt, state.agent
    assert (wake_at_ms(state) is None) == isinstance(next_step(state), Idle)
    assert (state.status == "pending") == (attempt is None) or state.status in {"failed", "deleting", "deleted"}
    assert attempt is None or 1 <= attempt.number <= ATTEMPTS_MAX
    if state.status == "running":
        assert attempt is not None
        assert attempt.server_id is not None
        assert agent is not None
    if state.status in {"failed", "error", "deleted"}:
        assert attempt is None or not attempt.may_have_server, "nothing is left behind"
    if state.status == "deleted":
        assert state.teardown_done == TEARDOWN_STEPS
        assert agent is None or agent.key_hash is None
    assert state.teardown_done == TEARDOWN_STEPS[: len(state.teardown_done)]
    assert agent is None or agent.key_id is not None or not agent.key_acknowledged


@settings(max_examples=150)
@given(st.lists(moves, min_size=15, max_size=50))
def test_any_sequence_of_commands_keeps_the_lifecycle_and_the_invariants_of_an_instance(sequence: list[Move]) -> None:
    witness = Witness()

    for move in sequence:
        witness.live(move)
        if witness.now is not None:
            check(witness.now)

    assert witness.loaded() == witness.now, "a state is what its stored events add up to"


@settings(max_examples=100)
@given(st.lists(moves, min_size=1, max_size=30), st.lists(moves, max_size=20))
def test_an_erasure_at_any_point_leaves_no_sealed_value_from_then_on(before: list[Move], after: list[Move]) -> None:
    witness = Witness()
    for move in before:
        witness.live(move)
    if witness.now is None:
        witness.live("forward")
    assert witness.now is not None
    version, erased_before = witness.now.version, witness.now.erased_ms is not None

    witness.live(erasure)

    assert witness.now.version == version + (not erased_before)
    for move in (*after, erasure):
        check(witness.now)
        assert SEALED.encode() not in msgspec.json.encode(witness.now)
        assert SEALED not in str(row_of(witness.now, lane=0))
        witness.live(move)
    assert [type(event) for event in witness.events].count(e.CustomerErased) == 1
    assert witness.loaded() == witness.now


@settings(max_examples=40)
@given(st.lists(moves, min_size=15, max_size=50))
def test_the_master_key_status_is_the_same_when_irrelevant_events_are_left_out(sequence: list[Move]) -> None:
    witness, whole, without_use = Witness(), None, None
    for move in sequence:
        witness.live(move)

    for event in witness.events:
        whole = evolve(whole, event, stream_id=witness.who.id)
        if not isinstance(event, IRRELEVANT_EVENTS):
            without_use = evolve(without_use, event, stream_id=witness.who.id)
        assert without_use is not None
        assert key_status(without_use, MASTER_KEYS) == key_status(whole, MASTER_KEYS)
        seen = [(state.status, state.teardown_done, state.attempt) for state in (whole, without_use)]
        assert seen[0] == seen[1]


@given(st.integers(0, 40))
@settings(max_examples=41)
def test_an_instance_that_only_takes_its_next_steps_is_deleted_in_the_end(count: int) -> None:
    witness = Witness()
    for _ in range(count):
        witness.live("forward")
        if witness.now is not None and witness.now.status == "running":
            break

    for _ in range(40):
        witness.live("forward")

    assert witness.now is not None
    assert witness.now.status == "deleted"
