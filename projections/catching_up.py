"""Bring a build up to date with what was appended to the log since the targets of its fold.

All of this runs in the caller's transaction, and makes the names of the tables mean the build's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import psycopg
from psycopg import AsyncConnection

from events.exchange import exchange
from events.sql import Statements
from projections.definition import Followed, Inline, Projection
from projections.errors import EventRefused, RebuildLockLost
from projections.fact import LogEntry, Place, Reader, Skipped, stream_of, table_reader
from projections.fact_pages import read_facts
from projections.generations import Generation, use_schema
from projections.refolding import GrownStream, KeptFolds, Stream, grown_streams, refold

_SQL = Statements("projections", "catching_up.sql")
_POSITIONS = _SQL["positions"]
_LOCK_POSITIONS = _SQL["lock_positions"]
_MOVE = _SQL["move"]

#: About the most events that are read at a time, and the fewest of each lane, unless they are large.
FACTS_MAX = 4_000
LANE_FACTS_MIN = 50

Positions = Mapping[int, int]


class ReadLimitExceeded(Exception):
    """More than `read_max` events would have to be read. Nothing was done."""


class CatchUpStep(NamedTuple):
    """What a step applied.

    `events`: how many. `read`: how many had to be read, older events of streams without a kept fold included. `lanes`:
    their lanes. `streams`: their streams, each with its version before the step.
    """

    events: int
    read: int
    lanes: set[int]
    streams: dict[Stream, int]


async def read_positions(connection: AsyncConnection, follower: str) -> dict[int, int]:
    return dict(await (await connection.execute(_POSITIONS, (follower,))).fetchall())


async def catch_up(
    connection: AsyncConnection,
    projection: Projection,
    build: Generation,
    upto: Positions,
    kept: KeptFolds,
    *,
    read_max: int | None = None,
) -> CatchUpStep:
    """Apply the log to `build`, up to `upto` in every lane. `upto` must be a consistent cut through the log.

    `kept`: the folds that earlier steps of this build have kept; this step adds its own. Raises `ReadLimitExceeded`
    where more than `read_max` events would have to be read, `EventRefused`, `LogCorrupted` where an event is missing,
    and `RebuildLockLost` where the build was dropped or swapped by others, who have the rebuild lock then.
    """
    # Locked, because the session with the rebuild lock may have been lost since it was last checked. Of two who step at
    # the same time, the second then waits, and continues from where the first has come to.
    at = dict(await (await connection.execute(_LOCK_POSITIONS, (build.follower,))).fetchall())
    if not at:
        raise RebuildLockLost(projection.name)
    ahead = {lane: seq for lane, seq in upto.items() if seq > at[lane]}
    if not ahead:
        return CatchUpStep(0, 0, set(), {})
    grown = await grown_streams(connection, at, ahead, kept) if isinstance(projection, Inline) else list[GrownStream]()
    events = sum(seq - at[lane] for lane, seq in ahead.items())
    read = sum(one.to_read for one in grown) if isinstance(projection, Inline) else events
    if read_max is not None and read > read_max:
        raise ReadLimitExceeded
    await use_schema(connection, build)
    if isinstance(projection, Inline):
        await refold(connection, projection, grown, kept)
    else:
        await _add(connection, projection, at, ahead)
        # After `_add`, whose errors say more precisely what is missing.
        grown = await grown_streams(connection, at, ahead, kept)
    moved = {"follower": build.follower, "lanes": list(ahead), "upto": list(ahead.values())}
    await connection.execute(_MOVE, moved)
    return CatchUpStep(events, read, set(ahead), {one.stream: one.before for one in grown})


async def _add(connection: AsyncConnection, projection: Followed, at: Positions, ahead: Positions) -> None:
    """Apply the facts from `at` to `ahead` as a follower does. Raises `EventRefused` and `LogCorrupted`."""
    reader, read = Reader.of(projection), table_reader(connection, prepared=False)

    async def add(some: Sequence[LogEntry], skipped: Skipped) -> None:
        facts = reader.decode(some, skipped)
        if facts:
            await exchange(connection, await projection.changes(read, facts), prepared=False)

    places: list[Place] = [(lane, at[lane]) for lane in ahead]
    while places:
        limit = max(LANE_FACTS_MIN, FACTS_MAX // len(places))
        found = await read_facts(connection, places, [reader], heads=ahead, upto=ahead, limit=limit, prepared=False)
        for gap in found.gaps.values():
            raise gap
        entries = [entry for place in places for entry in found.entries[place]]
        try:
            async with connection.transaction():
                await add(entries, found.skipped)
        except psycopg.Error:
            raise
        except Exception as error:
            refused = await _first_refused(connection, partial(add, skipped=found.skipped), entries)
            lane, seq, tag, _ = refused
            stream_id = stream_of(refused)
            raise EventRefused(projection.name, error, lane=lane, stream_id=stream_id, seq=seq, tag=tag) from error
        moved = [(lane, after + len(found.entries[lane, after])) for lane, after in places]
        places = [(lane, seq) for lane, seq in moved if seq < ahead[lane]]


async def _first_refused(
    connection: AsyncConnection, add: Callable[[Sequence[LogEntry]], Awaitable[None]], entries: Sequence[LogEntry]
) -> LogEntry:
    """The first of `entries` that is refused. They cannot all be added. Nothing is added."""
    fine, refused = 0, len(entries)
    while refused - fine > 1:
        middle = (fine + refused) // 2
        try:
            async with connection.transaction(force_rollback=True):
                await add(entries[:middle])
        except psycopg.Error:
            raise
        except Exception:  # noqa: BLE001 - the caller raises the error of the whole batch
            refused = middle
        else:
            fine = middle
    return entries[refused - 1]
