"""What a snapshot holds is the state, and rules that make another state of a history have another number."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import pytest

from events import snapshots, stream_state
from events.evolve import evolve
from events.state import Instance
from events.stream_state import FOLD_VERSION
from events.types import AnyEvent
from tests import frozen, lives

#: By the number of the rules: the digest of all states that they make of the corpus. Lines are added, and only the last one is ever
#: edited, before it is released.
FROZEN = {1: "286c352245cf13c6dc91ab632e0c680651c23b1bd68f7cc20bbd168b4b5144dd"}


def results() -> Iterator[bytes]:
    """What the rules of today make of every prefix of the frozen histories, and of one more event of each type behind it."""
    others = frozen.events()
    for history in frozen.histories():
        state = None
        for event in history:
            state = evolve(state, event, stream_id=lives.instance_id())
            yield stream_state.encode(state)
            yield from (result(state, other) for other in others)


def result(state: Instance, event: AnyEvent) -> bytes:
    try:
        return stream_state.encode(evolve(state, event, stream_id=state.id))
    except Exception as error:  # noqa: BLE001 - that it makes no sense there, and how that is found, is a result
        return type(error).__name__.encode()


def test_whoever_changes_what_a_history_gives_changes_the_number_of_the_rules() -> None:
    """Otherwise processes of this release would go on from states that those before have made by other rules.

    Where this fails: raise `FOLD_VERSION` in `events/stream_state.py`, and add its digest.
    """
    digest = sha256(b"\n".join(results())).hexdigest()

    assert FROZEN[FOLD_VERSION] == digest
    assert max(FROZEN) == FOLD_VERSION


@pytest.mark.parametrize("way", lives.WAYS)
def test_a_snapshot_is_read_as_the_state_that_it_was_made_of(way: str) -> None:
    state = lives.Life.after(*lives.WAYS[way]).state

    text = stream_state.encode(state)

    assert stream_state.decode(text) == state
    assert stream_state.encode(stream_state.decode(text)) == text


@pytest.mark.parametrize(("before", "after"), [(499, 500), (0, 1_500), (999, 1_001)])
def test_one_is_due_where_a_stream_gets_over_each_five_hundredth_event(before: int, after: int) -> None:
    assert snapshots.is_due(before, after)
    assert not snapshots.is_due(after, after + 498)
