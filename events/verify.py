"""Verifies lanes of the log: every digest, every link, every number, every version, and what the seals say of them.

Behind a lane's head nothing ever changes, so that most of a lane needs no snapshot: `read` takes it in short transactions, as far as
it is told to, and whoever calls may take a rest between them. `finish` looks at what came since, and at what must agree with
the events, in one snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from psycopg import Connection
from psycopg.types.string import ByteaBinaryLoader

from events import pages, verified_lane
from events.ids import SEQ_MAX
from events.sql import Statements
from events.verified_lane import Lane, LaneReport
from events.window import TYPES, Window, window_of

_SQL = Statements("events", "verify.sql")
_PLANS = _SQL["plans"]
_WINDOWS = _SQL["windows"]
_LANES = _SQL["lanes"]
_BOUNDS = _SQL["bounds"]

#: How many lanes are read side by side: the more, the seldomer a page of the table is read, and the seldomer the session and this
#: process wait for each other; but what is known of each stream of these lanes is kept in memory. So there are more of a log that is
#: not long, and of none so many that reading on in each takes a tenth of a second.
LANES_AT_ONCE = 16
LANES_AT_ONCE_MAX = 32


def read(
    connection: Connection,
    lanes: Sequence[Lane],
    *,
    after_each: Callable[[int], None],
    take_fitting: Callable[[int, Window], None] | None = None,
) -> None:
    """Look at these lanes side by side, each as far as it is told to.

    `after_each` is called after each short transaction, with the number of events that were looked at in it. `take_fitting` is given
    windows that fit, behind their transactions and in order, with the numbers of their lanes; not those which are too large to be kept
    until then.
    """
    for lane in lanes:
        lane.learn(connection)
    left = {lane.number: lane for lane in lanes}
    while left:
        before = sum(lane.events for lane in left.values())
        seen, kept = _turn(connection, left, {number: lane.upto for number, lane in left.items()})
        after_each(sum(lane.events for lane in left.values()) - before)
        for number in set(left) - seen:
            del left[number]
        while take_fitting is not None and kept:
            take_fitting(*kept.pop(0))
            after_each(0)


def finish(connection: Connection, lanes: Sequence[Lane]) -> list[LaneReport]:
    """All that is wrong with these lanes, which were read. In one snapshot: the rest of them, and what must agree with their ends."""
    settled = [lane.versions_known for lane in lanes]
    for lane in lanes:
        lane.learn(connection)
    left = {lane.number: lane for lane in lanes}
    while left:
        seen, _ = _turn(connection, left, dict.fromkeys(left, SEQ_MAX))
        left = {number: lane for number, lane in left.items() if number in seen}
    numbers = [lane.number for lane in lanes]
    bounds = {lane: (lowest, highest) for lane, lowest, highest in connection.execute(_BOUNDS, (numbers,))}
    there = {lane for (lane,) in connection.execute(_LANES, (numbers,))}
    return [
        lane.finish(connection, bounds=bounds[lane.number], is_there=lane.number in there, settled=count)
        for lane, count in zip(lanes, settled, strict=True)
    ]


def _turn(
    connection: Connection, lanes: dict[int, Lane], ends: dict[int, int]
) -> tuple[set[int], list[tuple[int, Window]]]:
    """The next window of each lane, not beyond its end, unless it has to be asked for again: which lanes had one, and the windows that
    fit, as many as a page holds.
    """
    parameters = {
        "lanes": list(lanes),
        "after": [lane.read_upto for lane in lanes.values()],
        "upto": [ends[number] for number in lanes],
        "windows": [lane.window for lane in lanes.values()],
        "bytes": [lane.payload_bytes_max for lane in lanes.values()],
        "events": 4 * verified_lane.WINDOW,
    }
    seen, kept, room = set[int](), list[tuple[int, Window]](), pages.PAGE_BYTES
    with connection.transaction():
        connection.execute(_PLANS)
        cursor = connection.cursor()
        # Digests are taken over the bytes of a document: nothing is made of them.
        cursor.adapters.register_loader("json", ByteaBinaryLoader)
        with cursor.copy(_WINDOWS, parameters) as copy:
            copy.set_types(("int2", "int4", *TYPES))
            for number, bytes_max, *columns in copy.rows():
                seen.add(number)
                if not lanes[number].has_room(bytes_max or 0):
                    continue
                window = window_of(columns)
                if lanes[number].take(window):
                    room -= sum(map(len, window.payloads))
                    if room >= 0:
                        kept.append((number, window))
    return seen, kept
