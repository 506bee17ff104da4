"""Compares the tables of followed projections with what the log gives, lane by lane.

A follower writes its rows and its checkpoint in one transaction, so that one snapshot shows both in
agreement. The events up to a checkpoint never change: they are added up while the lane is verified
(`Along`), and those that are lacking then are read afterwards, page by page and without a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import psycopg
from psycopg import Connection, sql

from events import pages
from events.finding import FINDINGS_MAX, Finding, Note
from events.sql import Statements, identifiers, template
from events.window import Window
from hydracore.audit.newer import Newer, newer
from hydracore.audit.rows import as_stored, differences, lock, read
from hydracore.audit.window_facts import WindowFacts
from hydracore.wording import plural
from projections import stored
from projections.definition import Accumulator, Followed
from projections.fact import Fact, decode_list, payload_types
from projections.tables import LIVE, Row, Table

_SQL = Statements("hydracore.audit", "sums.sql")
_FOLLOWED = _SQL["followed"]
_FACTS = template(_SQL["facts"])
_ROWS = template(_SQL["rows"])
_ROWS_OF_NO_LANE = template(_SQL["rows_of_no_lane"])

#: The most events that are read at a time.
EVENTS_MAX = 2_000

#: The most bytes of payloads that are held in the sums of lanes that are added up while they are
#: verified. In memory they take about twice as much.
HELD_BYTES_MAX = 64 * 2**20

#: The most skipped events that are named per projection and lane.
SKIPPED_MAX = 5


class Seen(NamedTuple):
    """A projection in one lane: the number it has followed to, the events skipped by order, and its rows by table."""

    projection: Followed
    upto: int
    is_parked: bool
    skipped: frozenset[int]
    rows: Mapping[str, list[Row]]


class Room:
    """The bytes of payloads that may still be held in the sums of all lanes that are added up side by side."""

    def __init__(self, bytes_max: int = HELD_BYTES_MAX) -> None:
        self.left = bytes_max


class Along:
    """The folds of followed projections in one lane, fed with its windows while they are verified.

    Where a window is missing or cannot be folded, or `room` is used up, it gives up and frees all that
    it holds. Then the lane is read once more, and what is wrong with it is reported then.
    """

    def __init__(self, lane: int, served: Collection[Followed], room: Room) -> None:
        self._folds = {
            (each.name, each.version): (None if each.types is None else frozenset(each.types), each.begin())
            for each in served
        }
        self._facts = WindowFacts(lane, payload_types(served))
        self._room = room
        self._held = 0
        #: The number of the last event that was added.
        self.upto = 0

    def take(self, window: Window) -> None:
        if not self._folds:
            return
        weight = self._facts.payload_bytes(window)
        if window.seqs[0] != self.upto + 1 or weight > self._room.left:
            self._end()
            return
        self._room.left -= weight
        self._held += weight
        try:
            named = list(self._facts.of(window))
            for types, fold in self._folds.values():
                fold.feed([fact for name, fact in named if types is None or name in types])
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - a forged history may break a fold anywhere; the second read reports it
            self._end()
        else:
            self.upto = window.seqs[-1]

    def _end(self) -> None:
        self._folds.clear()
        self._room.left += self._held
        self._held = 0

    def fold(self, seen: Seen) -> Accumulator | None:
        """The fold of `seen`; None if there is none, or if it was fed events that the projection lacks."""
        _, fold = self._folds.get((seen.projection.name, seen.projection.version), (None, None))
        return None if seen.skipped or seen.upto < self.upto else fold


class Started(NamedTuple):
    """The fold of the projection `seen`, and the number `after` which it lacks events."""

    seen: Seen
    fold: Accumulator
    after: int


def _started(seen: Seen, along: Along | None) -> Started:
    fold = None if along is None else along.fold(seen)
    if along is None or fold is None:
        return Started(seen, seen.projection.begin(), 0)
    return Started(seen, fold, along.upto)


def compare(
    connection: Connection,
    lane: int,
    served: Collection[Followed],
    *,
    due: int,
    after_each: Callable[[int], None],
    along: Along | None = None,
) -> Iterator[Finding | Newer | Note]:
    """Compare the rows of a lane with its events. Yields what differs, was not compared, or was only believed.

    `due`: the number to which all should have followed by now. `along`: the folds so far; events that
    they lack are read. `after_each`: called after each page of events, with their number.
    """
    with connection.transaction():
        head, seen = _look(connection, lane, served)
    for each in seen:
        if each.upto > head:
            what = (
                f"{each.projection.name} claims to have applied events up to {each.upto}, but the lane ends with {head}"
            )
            yield Finding(kind="checkpoint_wrong", what=what, lane=lane, seq=head + 1, last_seq=each.upto)
        yield from _believed(each, lane, head, due=due)
    for added in _added(connection, lane, seen, head=head, after_each=after_each, along=along):
        if not isinstance(added, Started):
            yield added
            continue
        fresh = added.fold.rows()
        for table in added.seen.projection.tables:
            wanted = as_stored(table, list(fresh[table.name]))
            yield from differences(table, added.seen.rows[table.name], wanted, place=lambda _row: {"lane": lane})


def _added(
    connection: Connection,
    lane: int,
    seen: Sequence[Seen],
    *,
    head: int,
    after_each: Callable[[int], None],
    along: Along | None,
) -> Iterator[Started | Finding | Newer]:
    """The folds, fed with the events they lack, or why that failed: together or, if one of them fails, one by one."""
    started = [_started(each, along) for each in seen]
    try:
        for facts in _facts(connection, lane, started, head=head):
            _feed(started, facts)
            after_each(len(facts))
    except (psycopg.OperationalError, psycopg.InterfaceError, MemoryError):
        raise  # A database that goes away is no finding.
    except Exception as error:  # noqa: BLE001 - a forged history may break a fold anywhere
        if len(seen) == 1:
            what = f"The events of the lane cannot be applied to {seen[0].projection.name}: {type(error).__name__}"
            yield newer(error, lane) or Finding(kind="history_broken", what=what, lane=lane)
            return
        for each in seen:
            # From the beginning: a fold may have been fed some of the events already.
            yield from _added(connection, lane, [each], head=head, after_each=after_each, along=None)
    else:
        yield from started


def _believed(seen: Seen, lane: int, head: int, *, due: int) -> Iterator[Note]:
    """Notes on what rows may lack according to the database: somebody who edits rows can edit that as well."""
    name = seen.projection.name
    if seen.upto < min(head, due):
        there = f"to {seen.upto} of {head}{', parked' if seen.is_parked else ''}"
        yield Note(f"{name} has not applied all of the log; later events were not compared", lane, there)
    skipped = sorted(seq for seq in seen.skipped if 0 < seq <= min(seen.upto, head))
    if skipped:
        first = ", ".join(map(str, skipped[:SKIPPED_MAX])) + (", ..." if len(skipped) > SKIPPED_MAX else "")
        there = f"{plural(len(skipped), 'event')}: {first}"
        yield Note(f"{name} skips events on an operator's order, and was compared without them", lane, there)


def orphan_rows(connection: Connection, served: Collection[Followed]) -> Iterator[Finding]:
    """Rows of lanes that do not exist: the comparison lane by lane does not see them."""
    for table in (table for projection in served for table in projection.tables):
        query = _ROWS_OF_NO_LANE.format(table=sql.Identifier(LIVE, table.name))
        for (lane,) in connection.execute(query, {"limit": FINDINGS_MAX}):
            what = f"The table has rows of lane {lane}, which does not exist"
            yield Finding(kind="row_extra", what=what, lane=lane, table=table.name)


def _look(connection: Connection, lane: int, served: Collection[Followed]) -> tuple[int, list[Seen]]:
    """The head of the lane, and the progress and the rows of each projection in it, at one moment."""
    followed = {projection.name: projection for projection in served}
    lock(connection, served)
    parameters = {"lane": lane, "names": list(followed)}
    head, seen = 0, list[Seen]()
    for name, version, at, upto, is_parked, skipped in connection.execute(_FOLLOWED, parameters).fetchall():
        head, projection = at, followed[name]
        # If another version is served since, its rows cannot be compared with this version's fold.
        if version == projection.version:
            rows = {table.name: _rows(connection, table, lane) for table in projection.tables}
            seen.append(Seen(projection, upto, is_parked, frozenset(skipped), rows))
    return head, seen


def _rows(connection: Connection, table: Table, lane: int) -> list[Row]:
    assert table.laned, "whoever follows does so lane by lane"
    return read(connection, _query(table), {"lane": lane})


@cache
def _query(table: Table) -> bytes:
    return _ROWS.format(columns=identifiers(table.columns), table=sql.Identifier(LIVE, table.name)).as_bytes(None)


def _facts(connection: Connection, lane: int, started: Sequence[Started], *, head: int) -> Iterator[list[Fact]]:
    """The events of the lane that any of the folds lacks, in order. Some folds have taken the first of them already."""
    told = sql.Literal(payload_types(each.seen.projection for each in started))
    query = _FACTS.format(fact=stored.fact(told), weight=stored.weight(told))
    after = min((each.after for each in started), default=0)
    upto = min(head, max((each.seen.upto for each in started), default=0))
    while after < upto:
        last = min(upto, after + EVENTS_MAX)
        parameters = {"lane": lane, "after": after, "upto": last, "bytes": pages.PAGE_BYTES}
        (page,) = connection.execute(query, parameters, prepare=True).fetchall()
        seq, weight, facts = page
        if facts is not None:
            yield decode_list(facts.encode())
        after = seq if weight is not None and weight >= pages.PAGE_BYTES else last


def _feed(started: Sequence[Started], facts: list[Fact]) -> None:
    for (projection, upto, _, skipped, _), fold, after in started:
        types = projection.types
        fold.feed(
            [
                fact
                for fact in facts
                if after < fact.seq <= upto and (types is None or fact.type in types) and fact.seq not in skipped
            ]
        )
