"""Verifies lanes of the log: every digest, link, number and version, and what the seals say of them.

Events that were committed never change, so most of a lane can be read without a snapshot: `check_lanes` does so in short transactions,
up to the end that each lane was given, and the caller may pause between them. `finish_lanes` reads what was appended since, and
compares the tables that must agree with the events, in one snapshot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from psycopg import Connection
from psycopg.types.string import ByteaBinaryLoader

from events import lane_verification, pages
from events.ids import SEQ_MAX
from events.lane_verification import LaneReport, LaneVerification
from events.sql import Statements
from events.window import TYPES, Window, window_of

_SQL = Statements("events", "verify.sql")
_PLANNER_SETTINGS = _SQL["planner_settings"]
_WINDOWS = _SQL["windows"]
_LANES = _SQL["lanes"]
_BOUNDS = _SQL["bounds"]

#: How many lanes are read in one query. With more lanes, each page of the table is read less often, and the session and this process
#: wait less for each other; but the versions of all streams of these lanes are kept in memory. So short logs are read with more lanes,
#: and never with so many that one query takes a tenth of a second.
LANES_AT_ONCE = 16
LANES_AT_ONCE_MAX = 32


def check_lanes(
    connection: Connection,
    lanes: Sequence[LaneVerification],
    *,
    on_read: Callable[[int], None],
    on_valid_window: Callable[[int, Window], None] | None = None,
) -> None:
    """Verify these lanes together, each up to its `upto`.

    `on_read` is called after each short transaction with the number of events that it read. `on_valid_window` is called after the
    transactions with the valid windows, in order, and the numbers of their lanes. It does not get all of them: windows beyond the
    memory for a page are not kept until then.
    """
    for lane in lanes:
        lane.load_start_versions(connection)
    left = {lane.number: lane for lane in lanes}
    while left:
        before = sum(lane.events for lane in left.values())
        seen, kept = _check_next_windows(connection, left, {number: lane.upto for number, lane in left.items()})
        on_read(sum(lane.events for lane in left.values()) - before)
        for number in set(left) - seen:
            del left[number]
        # One at a time, and outside of the transaction: it takes a while, and no snapshot may be held then.
        while on_valid_window is not None and kept:
            on_valid_window(*kept.pop(0))
            on_read(0)


def finish_lanes(connection: Connection, lanes: Sequence[LaneVerification]) -> list[LaneReport]:
    """The reports of these lanes after `check_lanes`: verifies the rest of them, and what must agree with their ends.

    Call it in a REPEATABLE READ transaction. With several snapshots, an append in between would look like an inconsistency.
    """
    stream_counts = [lane.versions_known for lane in lanes]
    for lane in lanes:
        lane.load_start_versions(connection)
    left = {lane.number: lane for lane in lanes}
    while left:
        seen, _ = _check_next_windows(connection, left, dict.fromkeys(left, SEQ_MAX))
        left = {number: lane for number, lane in left.items() if number in seen}
    numbers = [lane.number for lane in lanes]
    bounds = {lane: (lowest, highest) for lane, lowest, highest in connection.execute(_BOUNDS, (numbers,))}
    lane_rows = Counter(lane for (lane,) in connection.execute(_LANES, (numbers,)))
    return [
        lane.finish(
            connection, bounds=bounds[lane.number], lane_rows=lane_rows[lane.number], streams_before_finish=count
        )
        for lane, count in zip(lanes, stream_counts, strict=True)
    ]


def _check_next_windows(
    connection: Connection, lanes: dict[int, LaneVerification], ends: dict[int, int]
) -> tuple[set[int], list[tuple[int, Window]]]:
    """Read and check the next window of each lane, up to the lane's end in `ends`.

    Returns the lanes that had a window, and the valid windows, as many as a page holds. A window that came without its payloads,
    because they were too large, is asked for again with fewer events.
    """
    parameters = {
        "lanes": list(lanes),
        "after": [lane.read_upto for lane in lanes.values()],
        "upto": [ends[number] for number in lanes],
        "windows": [lane.window_events for lane in lanes.values()],
        "bytes": [lane.payload_bytes_max for lane in lanes.values()],
        "events": 4 * lane_verification.WINDOW_EVENTS,
    }
    seen, kept, room = set[int](), list[tuple[int, Window]](), pages.PAGE_BYTES
    with connection.transaction():
        connection.execute(_PLANNER_SETTINGS)
        cursor = connection.cursor()
        # Digests cover the bytes of a document, so it is not parsed.
        cursor.adapters.register_loader("json", ByteaBinaryLoader)
        with cursor.copy(_WINDOWS, parameters) as copy:
            copy.set_types(("int2", "int4", *TYPES))
            for number, bytes_max, *columns in copy.rows():
                seen.add(number)
                if not lanes[number].accept_size(bytes_max or 0):
                    continue
                window = window_of(columns)
                if lanes[number].check_window(window):
                    room -= sum(map(len, window.payloads))
                    if room >= 0:
                        kept.append((number, window))
    return seen, kept
