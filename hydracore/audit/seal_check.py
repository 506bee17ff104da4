"""Checks the seals of the database, each with the one before it and with the copy outside the database.

The copy is trusted more: a seal of the copy that the database lacks, or has in another form, is a
finding, and the lanes are checked against that seal as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec
from psycopg import Connection
from psycopg.rows import class_row

from events.ids import SEQ_MAX
from events.lane_verification import SealPoint
from events.seal import Head, Seal, find_flaws
from events.sql import Statements
from events.verification_findings import FINDINGS_MAX, Finding
from hydracore.audit.seal_sample import SealSample
from hydracore.wording import plural

_SEALS_FROM = Statements("hydracore.audit", "sealing.sql")["seals_from"]

#: Seals per page.
SEALS_MAX = 100


class AcceptedKeys(NamedTuple):
    """The accepted keys, as `find_flaws` takes them."""

    public_key: bytes | None
    former_keys: tuple[bytes, ...]


class SealCheck(msgspec.Struct, kw_only=True):
    """`last`: the newest seal without a flaw. `newest`: the number of the database's last seal, 0 where it has none.

    `good` and `flawed` seals are the database's; `copied` seals are good, and only the copy has them. They are kept
    apart, because each sample is limited: nobody can displace seals of one kind by adding some of another.
    """

    count: int = 0
    newest: int = 0
    last: Seal | None = None
    good: SealSample = msgspec.field(default_factory=SealSample)
    flawed: SealSample = msgspec.field(default_factory=SealSample)
    copied: SealSample = msgspec.field(default_factory=SealSample)
    findings: list[Finding] = msgspec.field(default_factory=list[Finding])
    #: How many findings there were. Only the first `FINDINGS_MAX` are kept.
    finding_count: int = 0

    def add_findings(self, kind: str, number: int, flaws: Iterable[str]) -> None:
        for flaw in flaws:
            self.finding_count += 1
            if self.finding_count <= FINDINGS_MAX:
                self.findings.append(Finding(kind=kind, what=f"Seal {number}: {flaw}"))

    def points(self, lane: int) -> list[SealPoint]:
        """The distinct heads of a lane in the kept seals, in order, each with the number of its first seal."""
        first_numbers: dict[Head, int] = {}
        seals = (*self.good.seals, *self.flawed.seals, *self.copied.seals)
        for seal in sorted(seals, key=lambda seal: seal.number):
            head = _head(seal, lane)
            if head is not None:
                first_numbers.setdefault(head, seal.number)
        return sorted(SealPoint(*head, number) for head, number in first_numbers.items())

    def mention_omitted(self) -> None:
        if self.finding_count > FINDINGS_MAX:
            last = self.findings[-1]
            what = f"{last.what}; and {plural(self.finding_count - FINDINGS_MAX, 'finding')} more about seals"
            self.findings[-1] = msgspec.structs.replace(last, what=what)


def stored_seals(connection: Connection) -> Iterator[Seal]:
    """The seals of the database in order. Each page is read by a separate statement."""
    first = -(2**63)
    while first <= SEQ_MAX:
        with connection.cursor(row_factory=class_row(Seal), binary=True) as cursor:
            page = cursor.execute(_SEALS_FROM, (first, SEALS_MAX)).fetchall()
        yield from page
        if len(page) < SEALS_MAX:
            return
        first = page[-1].number + 1


def check_seals(
    stored: Iterable[Seal], copies: Iterable[Seal], *, public_key: bytes | None, former_keys: tuple[bytes, ...] = ()
) -> SealCheck:
    """Check the `stored` seals, in the order of their numbers, and `copies`, in the order of the file.

    The keys: see `find_flaws`. Raises what the iterables raise.
    """
    checked = SealCheck()
    keys = AcceptedKeys(public_key, former_keys)
    previous: Seal | None = None
    for seal, copy in _paired_by_number(stored, _in_rising_order(copies, checked, keys)):
        if seal is None:
            assert copy is not None, "there is one or the other"
            _report_missing(checked, copy, keys)
            continue
        flaws = [
            *_first_seal_flaws(seal, previous),
            *find_flaws(seal, previous=previous, public_key=keys.public_key, former_keys=keys.former_keys),
        ]
        if copy is not None and copy != seal:
            flaws.append("the copy outside the database has a different seal of this number")
            if _check_copy(checked, copy, keys):
                checked.copied.add(copy)
        checked.add_findings("seal_flawed", seal.number, flaws)
        checked.count += 1
        checked.newest = seal.number
        if flaws:
            checked.flawed.add(seal)
        else:
            checked.good.add(seal)
            checked.last = seal
        previous = seal
    checked.mention_omitted()
    return checked


def _paired_by_number(stored: Iterable[Seal], copies: Iterable[Seal]) -> Iterator[tuple[Seal | None, Seal | None]]:
    """Pair each seal with its copy, in the order of their numbers, holding one of each. None: there is none."""
    copying = iter(copies)
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


def _in_rising_order(copies: Iterable[Seal], checked: SealCheck, keys: AcceptedKeys) -> Iterator[Seal]:
    """The copies in rising order of number, without repeats: two relays that share a file may both write a seal.

    No relay leaves out a seal, so that a gap is a finding. A repeat may be a different seal of the same
    number: if it is good, it is kept, so that the lanes are checked against it.
    """
    last = 0
    newest: Seal | None = None
    for copy in copies:
        # A number out of order may itself be damaged. If it were accepted unchecked, all later copies
        # would be left out.
        if not 1 <= copy.number <= last + 1 and not _check_copy(checked, copy, keys):
            continue
        if copy.number > last:
            if copy.number > last + 1:
                upto = "" if copy.number == last + 2 else f", as are all up to {copy.number - 1}"
                checked.add_findings(
                    "copy_flawed", last + 1, [f"it is missing or out of order in the copy outside the database{upto}"]
                )
            last, newest = copy.number, copy
            yield copy
        elif copy != newest and _check_copy(checked, copy, keys):
            checked.copied.add(copy)


def _report_missing(checked: SealCheck, copy: Seal, keys: AcceptedKeys) -> None:
    """Report and keep a good copy of a seal that the database does not have."""
    if _check_copy(checked, copy, keys):
        checked.add_findings(
            "seal_missing", copy.number, ["it is in the copy outside the database, but not in the database"]
        )
        checked.copied.add(copy)


def _check_copy(checked: SealCheck, copy: Seal, keys: AcceptedKeys) -> bool:
    """Report the flaws of a copy. Returns whether it has none."""
    flaws = list(find_flaws(copy, previous=None, public_key=keys.public_key, former_keys=keys.former_keys))
    checked.add_findings("copy_flawed", copy.number, flaws)
    return not flaws


def _first_seal_flaws(seal: Seal, previous: Seal | None) -> list[str]:
    return ["all seals before it are missing"] if previous is None and seal.number != 1 else []


def _head(seal: Seal, lane: int) -> Head | None:
    """The head of a lane in a seal, or None: without the table's constraints there may be nulls and nested lists."""
    heads: Any = seal.heads or ()
    if lane < len(heads) and isinstance(heads[lane], int) and heads[lane] > 0 and seal.links:
        return seal.head(lane)
    return None
