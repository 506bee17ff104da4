"""A build on its way to the live tables, and compared with them, while everybody goes on writing."""

from __future__ import annotations

from psycopg import AsyncConnection, IsolationLevel

from events.ids import LANES
from events.sql import Statements
from projections.catching_up import catch_up, heads, positions
from projections.definition import Inline, Projection
from projections.drift import Comparison, Scope, compare
from projections.errors import ParityMismatch
from projections.generations import Generation
from projections.swap import Unverified, scope_of

_WHOLE_TABLES = Statements("projections", "drift.sql")["whole_tables"]

#: A swap is tried once no more than this many events are left to fold, or after so many steps towards it.
NEAR_EVENTS = 200
STEPS_MAX = 20

#: More streams than this are not compared while writers stand still: they are compared before.
UNVERIFIED_MAX = 2_000


def nothing_verified() -> Unverified:
    return Unverified(set(range(LANES)), set())


async def approach(
    connection: AsyncConnection, projection: Projection, build: Generation, unverified: Unverified
) -> int:
    """Take the build so near to the live tables that the rest is folded in no time; how many events that took."""
    events = 0
    for _ in range(STEPS_MAX):
        async with connection.transaction():
            step = await catch_up(connection, projection, build, await _goal(connection, projection))
        unverified.add(step)
        events += step.events
        if step.events <= NEAR_EVENTS:
            break
    return events


async def approach_verified(
    connection: AsyncConnection,
    projection: Projection,
    build: Generation,
    live: Generation | None,
    unverified: Unverified,
) -> None:
    """The same; and where much has changed since it was compared, it is compared now. Raises `ParityMismatch`."""
    await approach(connection, projection, build, unverified)
    if len(unverified.streams) > UNVERIFIED_MAX:
        comparison = await verify(connection, projection, build, live, unverified, everything=False)
        if comparison.drifted:
            raise ParityMismatch(build.name, comparison)
        await approach(connection, projection, build, unverified)


async def verify(
    connection: AsyncConnection,
    projection: Projection,
    build: Generation,
    live: Generation | None,
    unverified: Unverified,
    *,
    everything: bool,
) -> Comparison:
    """Take the build to where the live tables are in one snapshot, and compare the two in it: all rows, or those that are
    `unverified`. Nobody is stopped. What cannot be compared yet stays in `unverified`, and nothing else does.
    """
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    try:
        async with connection.transaction():
            upto = await _goal(connection, projection)
            unverified.add(await catch_up(connection, projection, build, upto))
            if live is None:
                return Comparison()
            await connection.execute(_WHOLE_TABLES)
            at = await positions(connection, build.follower)
            scope = scope_of(projection, unverified, at=at, upto=upto)
            if everything and isinstance(projection, Inline):
                scope = Scope()
            comparison = await compare(connection, projection, build, scope)
    finally:
        await connection.set_isolation_level(None)
    unverified.streams.clear()
    unverified.lanes.difference_update(scope.lanes or ())
    return comparison


async def _goal(connection: AsyncConnection, projection: Projection) -> dict[int, int]:
    """Where the live tables are: at the heads, or where their follower is."""
    if isinstance(projection, Inline):
        return await heads(connection)
    return await positions(connection, projection.name)
