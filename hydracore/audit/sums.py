"""Compares the tables of followed projections with what the log gives, lane by lane.

A follower writes its rows and its checkpoint together, so one look sees both as they belong together. What is behind a
checkpoint never changes: it is added up while the lane is verified (`Along`), and what is lacking then is read afterwards, in
pieces, without a snapshot.
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

#: How many events are read at a time, at most.
EVENTS_MAX = 2_000

#: How many bytes of what events say are held, at most, in the sums of lanes that are added up while they are verified; in memory it is
#: about twice as much.
HELD_BYTES_MAX = 64 * 2**20

#: How many of the events that a projection was told to pass over are named of each lane.
SKIPPED_MAX = 5


class Seen(NamedTuple):
    """A projection in one lane: how far it has followed, what it was told to pass over, and its rows by table."""

    projection: Followed
    upto: int
    is_parked: bool
    skipped: frozenset[int]
    rows: Mapping[str, list[Row]]


class Room:
    """How many bytes of what events say may be held, in sums, of all lanes that are added up side by side."""

    def __init__(self, bytes_max: int = HELD_BYTES_MAX) -> None:
        self.left = bytes_max


class Along:
    """What adds up in one lane, fed with its windows as they are verified.

    It ends, and lets go of all that it holds, where a window is missing or cannot be folded, and where there is no `room` for more: then
    the lane is read once more, and whatever is wrong with it is said then.
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
        weight = self._facts.bytes_told(window)
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
        except Exception:  # noqa: BLE001 - a history that somebody made up may break a fold anywhere; read again, it is told as such
            self._end()
        else:
            self.upto = window.seqs[-1]

    def _end(self) -> None:
        self._folds.clear()
        self._room.left += self._held
        self._held = 0

    def fold(self, seen: Seen) -> Accumulator | None:
        """That of a projection as it was `seen`; None where there is none, or it was fed what the projection has not taken."""
        _, fold = self._folds.get((seen.projection.name, seen.projection.version), (None, None))
        return None if seen.skipped or seen.upto < self.upto else fold


class Started(NamedTuple):
    """The fold of a projection that was `seen`, and the number `after` which its events are lacking."""

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
    """Where the rows of a lane are not what its events give, what could not be compared, and whose word was taken.

    `due`: how far all should have followed by now. `along`: what was added up already; what it lacks is read. `after_each` is told how
    many events were read each time.
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
    """The folds, fed with all that they lack, or why one cannot be: together, or each by itself where one of them breaks."""
    started = [_started(each, along) for each in seen]
    try:
        for facts in _facts(connection, lane, started, head=head):
            _feed(started, facts)
            after_each(len(facts))
    except (psycopg.OperationalError, psycopg.InterfaceError, MemoryError):
        raise  # A database that goes away is no finding.
    except Exception as error:  # noqa: BLE001 - a history that somebody made up may break a fold anywhere
        if len(seen) == 1:
            what = f"The events of the lane cannot be applied to {seen[0].projection.name}: {type(error).__name__}"
            yield newer(error, lane) or Finding(kind="history_broken", what=what, lane=lane)
            return
        for each in seen:
            # Anew: a fold may have been fed some of it.
            yield from _added(connection, lane, [each], head=head, after_each=after_each, along=None)
    else:
        yield from started


def _believed(seen: Seen, lane: int, head: int, *, due: int) -> Iterator[Note]:
    """What the rows may lack because the database says so, which whoever edits rows can make it say."""
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
    """Rows of no lane, which nobody who compares lane by lane would see."""
    for table in (table for projection in served for table in projection.tables):
        query = _ROWS_OF_NO_LANE.format(table=sql.Identifier(LIVE, table.name))
        for (lane,) in connection.execute(query, {"limit": FINDINGS_MAX}):
            what = f"The table has rows of lane {lane}, which does not exist"
            yield Finding(kind="row_extra", what=what, lane=lane, table=table.name)


def _look(connection: Connection, lane: int, served: Collection[Followed]) -> tuple[int, list[Seen]]:
    """Where the lane ends, and what each projection has made of it, at one moment."""
    followed = {projection.name: projection for projection in served}
    lock(connection, served)
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
    return read(connection, _query(table), {"lane": lane})


@cache
def _query(table: Table) -> bytes:
    return _ROWS.format(columns=identifiers(table.columns), table=sql.Identifier(LIVE, table.name)).as_bytes(None)


def _facts(connection: Connection, lane: int, started: Sequence[Started], *, head: int) -> Iterator[list[Fact]]:
    """What the folds lack of the lane, in order, and of those that lack less more than that."""
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
