"""Seals and the copy of them: a damaged copy is only a finding, and a long one is checked in bounded memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from events.ids import LANES
from events.seal import Head, Seal, make_seal
from events.verification_findings import FINDINGS_MAX
from hydracore.audit import seal_sample
from hydracore.audit.seal_check import check_seals
from tests.unit.test_seal import KEY, NOON, PUBLIC, chain, heads


@pytest.mark.parametrize(
    "change",
    [
        {"heads": [1] * (LANES - 1)},
        {"heads": [2**63] * LANES},
        {"sealed_at": NOON.replace(tzinfo=None)},
        {"number": 2**63},
        {"number": 50},
        {"number": -1},
    ],
)
@pytest.mark.parametrize("kept", [3, 0])
def test_a_damaged_seal_in_the_copy_is_a_finding_and_hides_no_other_seal(change: dict[str, Any], kept: int) -> None:
    seals = chain(3)
    copies = [seals[0], replace(seals[1], **change), seals[2]]

    checked = check_seals(seals[:kept], copies, public_key=PUBLIC)

    kinds = [finding.kind for finding in checked.findings]
    assert "copy_flawed" in kinds
    assert kinds.count("seal_missing") == (0 if kept else 2)
    assert {seal.number for seal in checked.copied.seals} == (set() if kept else {1, 3})


@pytest.mark.parametrize(
    ("numbers", "flaw"),
    [
        ([1, 3, 4], "Seal 2: it is missing or out of order in the copy outside the database"),
        ([1, 3, 2, 4], "Seal 2: it is missing or out of order in the copy outside the database"),
        ([4], "Seal 1: it is missing or out of order in the copy outside the database, as are all up to 3"),
        ([1, 2, 3, 2, 3, 4, 4], None),
        ([1, 2], None),
    ],
    ids=["taken out", "swapped", "the beginning", "written by two relays", "not yet written"],
)
def test_a_seal_missing_or_out_of_order_in_the_copy_is_a_finding(numbers: list[int], flaw: str | None) -> None:
    seals = chain(4)

    findings = check_seals(seals, [seals[number - 1] for number in numbers], public_key=PUBLIC).findings

    assert [(each.kind, each.what) for each in findings] == ([] if flaw is None else [("copy_flawed", flaw)])


def test_seals_removed_between_others_are_reported_as_missing_and_kept_from_the_copy() -> None:
    seals = chain(5)

    checked = check_seals([seals[0], seals[3], seals[4]], seals, public_key=PUBLIC)

    kinds = [(finding.kind, finding.what.partition(":")[0]) for finding in checked.findings]
    assert kinds[:2] == [("seal_missing", "Seal 2"), ("seal_missing", "Seal 3")]
    assert set(kinds[2:]) == {("seal_flawed", "Seal 4")}
    assert [seal.number for seal in checked.copied.seals] == [2, 3]


def test_a_copied_seal_that_contradicts_the_stored_one_counts_only_if_it_is_valid() -> None:
    (stored,) = chain(1)
    good = make_seal(heads(5), previous=None, sealed_at=NOON, key=KEY)
    flawed = replace(good, signature=bytes(64))

    trusted, ignored = (check_seals([stored], [copy], public_key=PUBLIC) for copy in (good, flawed))

    assert (trusted.copied.seals, ignored.copied.seals) == ([good], [])
    assert [finding.kind for finding in ignored.findings] == ["copy_flawed", "seal_flawed"]


@pytest.mark.parametrize("at", range(3))
def test_a_second_seal_of_the_same_number_counts_wherever_it_is_in_the_copy(at: int) -> None:
    """For example, the files of two relays were joined, one of them of another history."""
    seals = chain(2)
    other = make_seal(heads(5), previous=None, sealed_at=NOON, key=KEY)
    copies = [*seals[:at], other, *seals[at:]]

    checked = check_seals(seals, copies, public_key=PUBLIC)

    assert other in checked.copied.seals


def growing(length: int) -> list[Seal]:
    """Seals between which lane 0 alone gets longer."""
    seals: list[Seal] = []
    for number in range(length):
        now = [Head(number + 1, number.to_bytes(32)), *heads(1)[1:]]
        seals.append(make_seal(now, previous=seals[-1] if seals else None, sealed_at=NOON, key=KEY))
    return seals


def test_only_a_bounded_sample_is_kept_of_a_long_copy_that_the_database_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_sample, "SAMPLE_MAX", 8)
    seals = growing(FINDINGS_MAX + 20)

    checked = check_seals([], seals, public_key=PUBLIC)

    assert [len(checked.points(lane)) for lane in range(1, LANES)] == [1] * (LANES - 1)
    kept = [point.seal for point in checked.points(0)]
    assert len(kept) <= 8
    assert kept == sorted(kept)
    # The last seal is kept: its link covers all that came before.
    assert kept[-1] == seals[-1].number
    assert len(checked.findings) == FINDINGS_MAX
    assert checked.findings[-1].what.endswith("but not in the database; and 20 findings more about seals")


@pytest.mark.parametrize("most", [2, 3, 8])
def test_a_sample_of_seals_is_evenly_spread_and_has_the_first_and_the_newest(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(seal_sample, "SAMPLE_MAX", most)
    seals = growing(40)
    kept = seal_sample.SealSample()

    for count, seal in enumerate(seals, start=1):
        kept.add(seal)

        numbers = [one.number for one in kept.seals]
        steps = {later - earlier for earlier, later in pairwise(numbers[:-1])}
        assert (numbers[0], numbers[-1], len(numbers) <= most) == (1, count, True)
        assert len(steps) <= 1
        assert not steps or numbers[-1] - numbers[-2] <= max(steps)


def test_damaged_seals_do_not_displace_the_points_of_valid_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_sample, "SAMPLE_MAX", 2)
    seals = growing(7)
    # The end of the lane was cut off, and the last seals were edited to match it, all but their signatures.
    damaged = [replace(seal, heads=[1] * LANES) for seal in seals[5:]]

    points = check_seals([*seals[:5], *damaged], (), public_key=PUBLIC).points(0)

    assert points[-1][:2] == seals[4].head(0)
