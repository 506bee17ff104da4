"""Checks the seals of the database, one after the other, and against the copy outside it.

The copy counts for more: what it has and the database has not, or has otherwise, is a finding, and what such a seal says
of the lanes is checked as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec

from events.finding import Finding
from events.ids import LANES
from events.seal import Seal, flaws_of
from events.verify import Point


class SealsChecked(msgspec.Struct, kw_only=True):
    """`last`: the newest seal without a flaw. `points`: what seals say of the lanes that only the copy has, by lane."""

    count: int = 0
    #: The number of the newest seal of the database.
    upto: int = 0
    last: Seal | None = None
    points: dict[int, list[Point]] = msgspec.field(default_factory=lambda: defaultdict[int, list[Point]](list))
    findings: list[Finding] = msgspec.field(default_factory=list[Finding])


def check_seals(stored: Iterable[Seal], copies: Iterable[Seal], *, public_key: bytes | None) -> SealsChecked:
    """Both in the order of their numbers. `public_key`: see `flaws_of`. Raises what the iterables raise."""
    checked = SealsChecked()
    previous: Seal | None = None
    for seal, copy in _side_by_side(stored, copies):
        if seal is None:
            assert copy is not None, "there is one or the other"
            _only_copied(checked, copy, public_key)
            continue
        flaws = [*_out_of_place(seal, previous), *flaws_of(seal, previous=previous, public_key=public_key)]
        if copy is not None and copy != seal:
            flaws.append("the copy outside the database has another one of this number")
            _trust(checked, copy)
        checked.findings += [_finding("seal_flawed", seal.number, flaw) for flaw in flaws]
        checked.count += 1
        checked.upto = seal.number
        if not flaws:
            checked.last = seal
        previous = seal
    return checked


def _side_by_side(stored: Iterable[Seal], copies: Iterable[Seal]) -> Iterator[tuple[Seal | None, Seal | None]]:
    """Seals and copies of the same number together, in order, without holding more than one of each."""
    copying = _rising(copies)
    copy = next(copying, None)
    for seal in stored:
        while copy is not None and copy.number < seal.number:
            yield None, copy
            copy = next(copying, None)
        if copy is not None and copy.number == seal.number:
            yield seal, copy
            copy = next(copying, None)
        else:
            yield seal, None
    while copy is not None:
        yield None, copy
        copy = next(copying, None)


def _rising(copies: Iterable[Seal]) -> Iterator[Seal]:
    """The copies without repeats: two relays that share a file may both have written one."""
    last = 0
    for copy in copies:
        if copy.number > last:
            last = copy.number
            yield copy


def _only_copied(checked: SealsChecked, copy: Seal, public_key: bytes | None) -> None:
    """A copy of which the database knows nothing."""
    flaws = [*flaws_of(copy, previous=None, public_key=public_key)]
    checked.findings += [_finding("copy_flawed", copy.number, flaw) for flaw in flaws]
    if not flaws:
        what = "it is in the copy outside the database, and not in the database"
        checked.findings.append(_finding("seal_missing", copy.number, what))
        _trust(checked, copy)


def _out_of_place(seal: Seal, previous: Seal | None) -> list[str]:
    return [f"seal 1 is missing, and all up to {seal.number - 1}"] if previous is None and seal.number != 1 else []


def _trust(checked: SealsChecked, copy: Seal) -> None:
    for lane in range(LANES):
        seq, link = copy.head(lane)
        if seq > 0:
            checked.points[lane].append(Point(seq, link, copy.number))


def _finding(kind: str, number: int, flaw: str) -> Finding:
    return Finding(kind=kind, what=f"Seal {number}: {flaw}")
