"""Compares the tables of followed projections with what the log gives, lane by lane.

A follower writes its rows and its checkpoint in one transaction, so that one snapshot shows both in
agreement. The events up to a checkpoint never change: they are folded while the lane is verified
(`LaneFolds`), and events that a fold still lacks are read afterwards, page by page and without a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import psycopg
from psycopg import Connection, sql

from events import pages
from events.sql import Statements, identifiers, template
from events.verification_findings import FINDINGS_MAX, Finding, Note
from events.window import Window
from hydracore.audit.newer_events import NewerEvent, newer_event
from hydracore.audit.rows import as_stored, differences, lock_tables, read_rows
from hydracore.audit.window_facts import WindowFacts
from hydracore.wording import plural
from projections import sql_fragments
from projections.definition import Accumulator, Followed
from projections.fact import Fact, decode_list, payload_types
from projections.tables import LIVE, Row, Table

_SQL = Statements("hydracore.audit", "followed_tables.sql")
_FOLLOWED = _SQL["followed"]
_FACTS = template(_SQL["facts"])
_ROWS = template(_SQL["rows"])
_ROWS_OF_NO_LANE = template(_SQL["rows_of_no_lane"])

#: The most events that are read at a time.
EVENTS_MAX = 2_000

#: The most bytes of payloads in the folds of all lanes that are verified at the same time. In memory they
#: take about twice as much.
HELD_BYTES_MAX = 64 * 2**20

#: The most skipped events that are named per projection and lane.
SKIPPED_MAX = 5


class FollowedState(NamedTuple):
    """A followed projection in one lane, at one moment.

    `upto`: the number of the last event that it has applied, according to its checkpoint. `skipped`: the
    events that it skips on an operator's order. `rows`: by table.
    """

    projection: Followed
    upto: int
    is_parked: bool
    skipped: frozenset[int]
    rows: Mapping[str, list[Row]]


class MemoryBudget:
    """The bytes of payloads that the folds of all lanes that share this budget may still take."""

    def __init__(self, bytes_max: int = HELD_BYTES_MAX) -> None:
        self.bytes_left = bytes_max


class LaneFolds:
    """The folds of followed projections in one lane, fed with its windows while they are verified.

    Where a window is missing or cannot be folded, or `budget` is used up, it gives up and frees all that
    it holds. Then `compare` reads the lane once more, and reports what is wrong with it.
    """

    def __init__(self, lane: int, projections: Collection[Followed], budget: MemoryBudget) -> None:
        self._folds = {
            (each.name, each.version): (None if each.types is None else frozenset(each.types), each.begin())
            for each in projections
        }
        self._facts = WindowFacts(lane, payload_types(projections))
        self._budget = budget
        self._held_bytes = 0
        #: The number of the last event that was folded.
        self.upto = 0

    def take(self, window: Window) -> None:
        if not self._folds:
            return
        weight = self._facts.payload_bytes(window)
        if window.seqs[0] != self.upto + 1 or weight > self._budget.bytes_left:
            self._give_up()
            return
        self._budget.bytes_left -= weight
        self._held_bytes += weight
        try:
            named = list(self._facts.of(window))
            for types, fold in self._folds.values():
                fold.feed([fact for name, fact in named if types is None or name in types])
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - a forged history may break a fold anywhere; the second read reports it
            self._give_up()
        else:
            self.upto = window.seqs[-1]

    def _give_up(self) -> None:
        self._folds.clear()
        self._budget.bytes_left += self._held_bytes
        self._held_bytes = 0

    def fold(self, state: FollowedState) -> Accumulator | None:
        """The fold of this projection; None if there is none, or if it has events that the projection lacks."""
        _, fold = self._folds.get((state.projection.name, state.projection.version), (None, None))
        return None if state.skipped or state.upto < self.upto else fold


class PartialFold(NamedTuple):
    """A fold of the projection in `state`. It lacks the events with a number above `after`."""

    state: FollowedState
    fold: Accumulator
    after: int


def _begin_fold(state: FollowedState, lane_folds: LaneFolds | None) -> PartialFold:
    fold = None if lane_folds is None else lane_folds.fold(state)
    if lane_folds is None or fold is None:
        return PartialFold(state, state.projection.begin(), 0)
    return PartialFold(state, fold, lane_folds.upto)


def compare(
    connection: Connection,
    lane: int,
    projections: Collection[Followed],
    *,
    due: int,
    after_each: Callable[[int], None],
    lane_folds: LaneFolds | None = None,
) -> Iterator[Finding | NewerEvent | Note]:
    """Compare the rows of a lane with its events. Yields what differs, was not compared, or was taken on trust.

    `due`: the number of the last event that every projection should have applied by now. `lane_folds`: the folds
    so far; events that they lack are read. `after_each`: called after each page of events, with their number.
    """
    with connection.transaction():
        head, states = _read_lane(connection, lane, projections)
    for each in states:
        if each.upto > head:
            what = (
                f"{each.projection.name} claims to have applied events up to {each.upto}, but the lane ends with {head}"
            )
            yield Finding(kind="checkpoint_wrong", what=what, lane=lane, seq=head + 1, last_seq=each.upto)
        yield from _progress_notes(each, lane, head, due=due)
    for result in _complete_folds(connection, lane, states, head=head, after_each=after_each, lane_folds=lane_folds):
        if not isinstance(result, PartialFold):
            yield result
            continue
        fresh_rows = result.fold.rows()
        for table in result.state.projection.tables:
            wanted = as_stored(table, list(fresh_rows[table.name]))
            yield from differences(table, result.state.rows[table.name], wanted, place=lambda _row: {"lane": lane})


def _complete_folds(
    connection: Connection,
    lane: int,
    states: Sequence[FollowedState],
    *,
    head: int,
    after_each: Callable[[int], None],
    lane_folds: LaneFolds | None,
) -> Iterator[PartialFold | Finding | NewerEvent]:
    """Feed the folds the events that they lack, all at once or, if one of them fails, one by one.

    Yields the folds, and for each that failed why.
    """
    partial_folds = [_begin_fold(each, lane_folds) for each in states]
    try:
        for facts in _missing_facts(connection, lane, partial_folds, head=head):
            _feed(partial_folds, facts)
            after_each(len(facts))
    except (psycopg.OperationalError, psycopg.InterfaceError, MemoryError):
        raise  # A database that goes away is no finding.
    except Exception as error:  # noqa: BLE001 - a forged history may break a fold anywhere
        if len(states) == 1:
            what = f"The events of the lane cannot be applied to {states[0].projection.name}: {type(error).__name__}"
            yield newer_event(error, lane) or Finding(kind="history_broken", what=what, lane=lane)
            return
        for each in states:
            # From the beginning, because a fold may have been fed some of the events already.
            yield from _complete_folds(connection, lane, [each], head=head, after_each=after_each, lane_folds=None)
    else:
        yield from partial_folds


def _progress_notes(state: FollowedState, lane: int, head: int, *, due: int) -> Iterator[Note]:
    """Notes on events that the rows lack according to the database: somebody who edits rows can edit that as well."""
    name = state.projection.name
    if state.upto < min(head, due):
        there = f"to {state.upto} of {head}{', parked' if state.is_parked else ''}"
        yield Note(f"{name} has not applied all of the log; later events were not compared", lane, there)
    skipped = sorted(seq for seq in state.skipped if 0 < seq <= min(state.upto, head))
    if skipped:
        first = ", ".join(map(str, skipped[:SKIPPED_MAX])) + (", ..." if len(skipped) > SKIPPED_MAX else "")
        there = f"{plural(len(skipped), 'event')}: {first}"
        yield Note(f"{name} skips events on an operator's order, and was compared without them", lane, there)


def orphan_rows(connection: Connection, projections: Collection[Followed]) -> Iterator[Finding]:
    """Rows of lanes that do not exist: the comparison lane by lane does not see them."""
    for table in (table for projection in projections for table in projection.tables):
        query = _ROWS_OF_NO_LANE.format(table=sql.Identifier(LIVE, table.name))
        for (lane,) in connection.execute(query, {"limit": FINDINGS_MAX}):
            what = f"The table has rows of lane {lane}, which does not exist"
            yield Finding(kind="row_extra", what=what, lane=lane, table=table.name)


def _read_lane(connection: Connection, lane: int, projections: Collection[Followed]) -> tuple[int, list[FollowedState]]:
    """The head of the lane, and the progress and the rows of each projection in it, at one moment."""
    by_name = {projection.name: projection for projection in projections}
    lock_tables(connection, projections)
    parameters = {"lane": lane, "names": list(by_name)}
    head, states = 0, list[FollowedState]()
    for name, version, at, upto, is_parked, skipped in connection.execute(_FOLLOWED, parameters).fetchall():
        head, projection = at, by_name[name]
        # If another version is served since, its rows cannot be compared with this version's fold.
        if version == projection.version:
            rows = {table.name: _rows(connection, table, lane) for table in projection.tables}
            states.append(FollowedState(projection, upto, is_parked, frozenset(skipped), rows))
    return head, states


def _rows(connection: Connection, table: Table, lane: int) -> list[Row]:
    assert table.has_lane, "followed projections have rows per lane"
    return read_rows(connection, _rows_query(table), {"lane": lane})


@cache
def _rows_query(table: Table) -> bytes:
    return _ROWS.format(columns=identifiers(table.columns), table=sql.Identifier(LIVE, table.name)).as_bytes(None)


def _missing_facts(
    connection: Connection, lane: int, partial_folds: Sequence[PartialFold], *, head: int
) -> Iterator[list[Fact]]:
    """The events of the lane that at least one fold lacks, in order, a page at a time. Others may have some of them."""
    payload_type_names = sql.Literal(payload_types(each.state.projection for each in partial_folds))
    query = _FACTS.format(fact=sql_fragments.fact(payload_type_names), weight=sql_fragments.weight(payload_type_names))
    after = min((each.after for each in partial_folds), default=0)
    upto = min(head, max((each.state.upto for each in partial_folds), default=0))
    while after < upto:
        last = min(upto, after + EVENTS_MAX)
        parameters = {"lane": lane, "after": after, "upto": last, "bytes": pages.PAGE_BYTES}
        (page,) = connection.execute(query, parameters, prepare=True).fetchall()
        seq, weight, facts = page
        if facts is not None:
            yield decode_list(facts.encode())
        after = seq if weight is not None and weight >= pages.PAGE_BYTES else last


def _feed(partial_folds: Sequence[PartialFold], facts: list[Fact]) -> None:
    for (projection, upto, _, skipped, _), fold, after in partial_folds:
        types = projection.types
        fold.feed(
            [
                fact
                for fact in facts
                if after < fact.seq <= upto and (types is None or fact.type in types) and fact.seq not in skipped
            ]
        )
