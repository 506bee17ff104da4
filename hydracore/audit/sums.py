"""Compares the tables of followed projections with what the log gives, lane by lane.

A follower writes its rows and its checkpoint together, so one look sees both as they belong together. What is behind a
checkpoint never changes: it is folded while the lane is verified, and what is lacking then is read afterwards, in pieces, without
a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import psycopg
from psycopg import Connection, sql

from events import pages
from events.finding import FINDINGS_MAX, Finding, Note
from events.sql import Statements, template
from events.window import Window
from hydracore.audit.newer import Newer, newer
from hydracore.audit.rows import as_stored, differences, read
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

#: How many events are read at a time, at most.
EVENTS_MAX = 2_000

#: How many of the events that a projection was told to pass over are named of each lane.
SKIPPED_MAX = 5


class Seen(NamedTuple):
    """A projection in one lane: how far it has followed, what it was told to pass over, and its rows by table."""

    projection: Followed
    upto: int
    is_parked: bool
    skipped: frozenset[int]
    rows: Mapping[str, list[Row]]


class Begun:
    """The folds of one lane, fed with its windows as they are verified. They end where one is missing, or cannot be folded:
    whoever reads the lane once more says what is wrong with it.
    """

    def __init__(self, lane: int, served: Iterable[Followed]) -> None:
        self._folds = [(projection, projection.begin()) for projection in served]
        self._facts = WindowFacts(lane, payload_types(projection for projection, _ in self._folds))
        self._has_ended = False
        #: The number of the last event that they were fed.
        self.upto = 0

    def take(self, window: Window) -> None:
        if self._has_ended or window.seqs[0] != self.upto + 1:
            self._has_ended = True
            return
        try:
            named = list(self._facts.of(window))
            for projection, fold in self._folds:
                types = projection.types
                fold.feed([fact for name, fact in named if types is None or name in types])
        except Exception:  # noqa: BLE001 - a history that somebody made up may break a fold anywhere; read again, it is told as such
            self._has_ended = True
        else:
            self.upto = window.seqs[-1]

    def folds(self, seen: Sequence[Seen]) -> list[Accumulator] | None:
        """Those of the projections that were `seen`; None where they were fed what one of these has not taken."""
        if self._has_ended or any(each.skipped or each.upto < self.upto for each in seen):
            return None
        begun = {(projection.name, projection.version): fold for projection, fold in self._folds}
        folds = [begun.get((each.projection.name, each.projection.version)) for each in seen]
        return None if None in folds else [fold for fold in folds if fold is not None]


def compare(
    connection: Connection,
    lane: int,
    served: Collection[Followed],
    *,
    due: int,
    after_each: Callable[[], None],
    begun: Begun | None = None,
) -> Iterator[Finding | Newer | Note]:
    """Where the rows of a lane are not what its events give, what could not be compared, and whose word was taken.

    `due`: how far all should have followed by now. `begun`: what was folded already; without it, or where it does not fit what is
    served, all is read. `after_each` is called after each page.
    """
    with connection.transaction():
        head, seen = _look(connection, lane, served)
    for each in seen:
        if each.upto > head:
            what = f"{each.projection.name} is said to have followed to {each.upto}, and the lane ends with {head}"
            yield Finding(kind="checkpoint_wrong", what=what, lane=lane, seq=head + 1, last_seq=each.upto)
        yield from _believed(each, lane, head, due=due)
    folds, after = None if begun is None else begun.folds(seen), 0 if begun is None else begun.upto
    if folds is None:
        folds, after = [each.projection.begin() for each in seen], 0
    upto = min(head, max((each.upto for each in seen), default=0))
    try:
        for facts in _facts(connection, lane, seen, after=after, upto=upto):
            _feed(seen, folds, facts)
            after_each()
    except (psycopg.OperationalError, psycopg.InterfaceError):
        raise  # A database that goes away is no finding.
    except Exception as error:  # noqa: BLE001 - a history that somebody made up may break a fold anywhere
        what = f"The history of the lane makes no sense to whoever follows it: {type(error).__name__}"
        yield newer(error, lane) or Finding(kind="history_broken", what=what, lane=lane)
        return
    for each, fold in zip(seen, folds, strict=True):
        fresh = fold.rows()
        for table in each.projection.tables:
            wanted = as_stored(table, list(fresh[table.name]))
            yield from differences(table, each.rows[table.name], wanted, place=lambda _row: {"lane": lane})


def _believed(seen: Seen, lane: int, head: int, *, due: int) -> Iterator[Note]:
    """What the rows may lack because the database says so, which whoever edits rows can make it say."""
    name = seen.projection.name
    if seen.upto < min(head, due):
        there = f"to {seen.upto} of {head}{', parked' if seen.is_parked else ''}"
        yield Note(f"{name} has not followed all of the log, and what comes after was not compared", lane, there)
    skipped = sorted(seq for seq in seen.skipped if 0 < seq <= min(seen.upto, head))
    if skipped:
        first = ", ".join(map(str, skipped[:SKIPPED_MAX])) + (", ..." if len(skipped) > SKIPPED_MAX else "")
        there = f"{plural(len(skipped), 'event')}: {first}"
        yield Note(f"{name} passes over what it was told to by hand, and was compared without", lane, there)


def orphan_rows(connection: Connection, served: Collection[Followed]) -> Iterator[Finding]:
    """Rows of no lane, which nobody who compares lane by lane would see."""
    for table in (table for projection in served for table in projection.tables):
        query = _ROWS_OF_NO_LANE.format(table=sql.Identifier(LIVE, table.name))
        for (lane,) in connection.execute(query, {"limit": FINDINGS_MAX}):
            what = f"The table has rows of lane {lane}, and there is no such lane"
            yield Finding(kind="row_extra", what=what, lane=lane, table=table.name)


def _look(connection: Connection, lane: int, served: Collection[Followed]) -> tuple[int, list[Seen]]:
    """Where the lane ends, and what each projection has made of it, at one moment."""
    followed = {projection.name: projection for projection in served}
    tables = [sql.Identifier(LIVE, table.name) for projection in served for table in projection.tables]
    # Against a rebuild's swap: before the first look at anything.
    connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.SQL(", ").join(tables)))
    parameters = {"lane": lane, "names": list(followed)}
    head, seen = 0, list[Seen]()
    for name, version, at, upto, is_parked, skipped in connection.execute(_FOLLOWED, parameters).fetchall():
        head, projection = at, followed[name]
        # Another version came to be served in this moment: its rows are not for this one's fold.
        if version == projection.version:
            rows = {table.name: _rows(connection, table, lane) for table in projection.tables}
            seen.append(Seen(projection, upto, is_parked, frozenset(skipped), rows))
    return head, seen


def _rows(connection: Connection, table: Table, lane: int) -> list[Row]:
    assert table.laned, "whoever follows does so lane by lane"
    columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
    query = _ROWS.format(columns=columns, table=sql.Identifier(LIVE, table.name))
    return read(connection, query, {"lane": lane})


def _facts(connection: Connection, lane: int, seen: Sequence[Seen], *, after: int, upto: int) -> Iterator[list[Fact]]:
    told = sql.Literal(payload_types(each.projection for each in seen))
    query = _FACTS.format(fact=stored.fact(told), weight=stored.weight(told))
    while after < upto:
        last = min(upto, after + EVENTS_MAX)
        parameters = {"lane": lane, "after": after, "upto": last, "bytes": pages.PAGE_BYTES}
        (page,) = connection.execute(query, parameters, prepare=True).fetchall()
        seq, weight, facts = page
        if facts is not None:
            yield decode_list(facts.encode())
        after = seq if weight is not None and weight >= pages.PAGE_BYTES else last


def _feed(seen: Sequence[Seen], folds: Sequence[Accumulator], facts: list[Fact]) -> None:
    for (projection, upto, _, skipped, _), fold in zip(seen, folds, strict=True):
        types = projection.types
        fold.feed(
            [
                fact
                for fact in facts
                if fact.seq <= upto and (types is None or fact.type in types) and fact.seq not in skipped
            ]
        )
