"""A snapshot holds the state exactly, and fold rules that give another state of a history have another version."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import pytest

from events import snapshots, stream_state
from events.evolve import evolve
from events.state import Instance
from events.stream_state import FOLD_VERSION
from events.types import AnyEvent
from tests import frozen_corpus, lifecycle

#: By the version of the fold rules: the digest of all states that they give for the corpus. Lines are added, and only the last one is ever
#: edited, before it is released.
FROZEN = {1: "286c352245cf13c6dc91ab632e0c680651c23b1bd68f7cc20bbd168b4b5144dd"}


def results() -> Iterator[bytes]:
    """The states that today's rules give for every prefix of the frozen histories, and for each with one more event of each type."""
    others = frozen_corpus.events()
    for history in frozen_corpus.histories():
        state = None
        for event in history:
            state = evolve(state, event, stream_id=lifecycle.instance_id())
            yield stream_state.encode(state)
            yield from (result(state, other) for other in others)


def result(state: Instance, event: AnyEvent) -> bytes:
    try:
        return stream_state.encode(evolve(state, event, stream_id=state.id))
    except Exception as error:  # noqa: BLE001 - an event that makes no sense there raises one, and that is a result too
        return type(error).__name__.encode()


def test_the_fold_version_changes_whenever_a_history_gives_another_state() -> None:
    """Otherwise processes of this release would go on from snapshots that an earlier one made by other rules.

    Where this fails: raise `FOLD_VERSION` in `events/stream_state.py`, and add its digest.
    """
    digest = sha256(b"\n".join(results())).hexdigest()

    assert FROZEN[FOLD_VERSION] == digest
    assert max(FROZEN) == FOLD_VERSION


@pytest.mark.parametrize("way", lifecycle.COMMANDS_TO_STATUS)
def test_a_snapshot_decodes_to_the_state_that_it_was_made_of(way: str) -> None:
    state = lifecycle.InMemoryInstance.after(*lifecycle.COMMANDS_TO_STATUS[way]).state

    text = stream_state.encode(state)

    assert stream_state.decode(text) == state
    assert stream_state.encode(stream_state.decode(text)) == text


@pytest.mark.parametrize(("before", "after"), [(499, 500), (0, 1_500), (999, 1_001)])
def test_a_snapshot_is_due_when_a_stream_passes_a_multiple_of_500_events(before: int, after: int) -> None:
    assert snapshots.is_due(before, after)
    assert not snapshots.is_due(after, after + 498)
