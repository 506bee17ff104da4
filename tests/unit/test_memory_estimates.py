"""Estimates of the memory that a state takes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import pytest

from events.codec import decode, encode
from events.evolve import evolve
from events.memory_estimates import state_bytes
from events.state import Instance
from events.types import ConsentChanged, PlatformConfigPatched, Sealed
from tests import lifecycle

RUNNING = lifecycle.InMemoryInstance.after(*lifecycle.RUNNING).state


def test_the_memory_estimate_of_a_state_grows_with_its_configuration() -> None:
    patched = PlatformConfigPatched(at_ms=1, advanced=Sealed("v1." + "A" * 100_000), skills=({"name": "a"},) * 1_000)
    large = _after(RUNNING, patched)

    weight = state_bytes(RUNNING, before=None, weight=0)
    more = state_bytes(large, before=RUNNING, weight=weight) - weight

    assert more > 100_000 + 1_000 * len('{"name":"a"},')
    same = _after(large, ConsentChanged(at_ms=2, granted=True))
    assert state_bytes(same, before=large, weight=weight + more) == weight + more


@pytest.mark.parametrize("item", [{}, [], {"a": 1}, {"name": "a"}, [1.5], ["ab"]], ids=msgspec.json.encode)
def test_a_state_of_many_small_values_takes_no_more_memory_than_estimated(item: Any) -> None:
    items = (item,) * 9_000
    payload = encode(PlatformConfigPatched(at_ms=1, skills=items, integrations=items))

    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        state = evolve(RUNNING, decode(payload), stream_id=RUNNING.id)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    # Within a few per cent: memory that the interpreter keeps for reuse is traced, too.
    assert taken < 1.05 * state_bytes(state, before=None, weight=0)


def _after(state: Instance, event: PlatformConfigPatched | ConsentChanged) -> Instance:
    return evolve(state, event, stream_id=state.id)
