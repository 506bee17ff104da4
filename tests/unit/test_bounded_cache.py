"""A cache that is bounded by count and by bytes."""

from __future__ import annotations

from uuid import UUID

import pytest

from events.bounded_cache import BoundedCache
from events.types import PlatformConfigPatched, Sealed
from projections import refolding
from projections.instance import InstanceProjection
from tests import lifecycle

BEGUN = lifecycle.InMemoryInstance.after(*lifecycle.RUNNING).events[0]


def filled(*weights: int) -> BoundedCache[int, str]:
    recent = BoundedCache[int, str](count_max=3, bytes_max=100)
    for key, weight in enumerate(weights):
        recent.put(key, f"value {key}", weight=weight)
    return recent


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        ((1, 1, 1), [0, 1, 2]),
        ((1, 1, 1, 1), [1, 2, 3]),
        ((50, 50), [0, 1]),
        ((50, 50, 1), [1, 2]),
        ((50, 1, 1_000), [2]),
        ((1_000, 100), [1]),
    ],
)
def test_the_newest_values_are_kept_within_the_limits_of_count_and_bytes(
    weights: tuple[int, ...], kept: list[int]
) -> None:
    recent = filled(*weights)

    assert list(recent) == [f"value {key}" for key in kept]
    assert [key for key in range(len(weights)) if recent.get(key) is not None] == kept


def test_replacing_or_removing_a_value_frees_its_bytes() -> None:
    recent = filled(90, 5)

    recent.put(0, "smaller", weight=10)
    recent.put(2, "another", weight=85)
    assert list(recent) == ["value 1", "smaller", "another"]

    assert recent.pop(2) == "another"
    assert recent.pop(2) is None
    recent.put(3, "next", weight=85)
    assert list(recent) == ["value 1", "smaller", "next"]
    assert (recent.get_with_weight(0), recent.get_with_weight(2)) == (("smaller", 10), (None, 0))


def test_large_folds_of_a_build_are_kept_within_the_limit_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refolding, "KEPT_BYTES_MAX", 300_000)
    kept, streams = refolding.KeptFolds(), [(0, UUID(int=number)) for number in range(4)]

    for stream in streams:
        fold = InstanceProjection().begin(stream[1], lane=0)
        fold.feed([BEGUN, PlatformConfigPatched(at_ms=1, advanced=Sealed("v1." + "A" * 100_000))])
        kept.put(stream, fold, version=2)

    assert [kept.version(stream, before=2) for stream in streams] == [0, 0, 2, 2]
    assert [kept.pop(stream) is None for stream in streams] == [True, True, False, False]
