"""A build on its way to the live tables, and compared with them, while everybody goes on writing."""

from __future__ import annotations

from psycopg import AsyncConnection, IsolationLevel

from events.sql import Statements
from projections.candidate import Candidate
from projections.drift import Comparison, Scope, compare
from projections.errors import ParityMismatch
from projections.swap import READ_MAX

_WHOLE_TABLES = Statements("projections", "drift.sql")["whole_tables"]

#: A swap is tried once a step took no more than this many events and had to read no more for them, or after so many steps.
NEAR_EVENTS = 200
NEAR_READ = READ_MAX // 2
STEPS_MAX = 20

#: How many times as long as a step the rest behind it is at most: the log grows meanwhile, and what it grows by is to be folded, too.
REST_FACTOR_MAX = 1.0

#: More streams than this are not compared while writers stand still: they are compared before.
UNVERIFIED_MAX = 500


async def approach(connection: AsyncConnection, candidate: Candidate) -> int:
    """Take the build so near to the live tables that the rest is folded and compared in no time; how many events that took.

    Raises `ParityMismatch` where something is compared on the way and differs.
    """
    events = await come_near(connection, candidate)
    if candidate.unverified is not None and len(candidate.unverified.streams) > UNVERIFIED_MAX:
        comparison = await verify(connection, candidate, everything=False)
        if comparison.drifted:
            raise ParityMismatch(candidate.build.name, comparison)
        events += await come_near(connection, candidate)
    return events


async def verify(connection: AsyncConnection, candidate: Candidate, *, everything: bool) -> Comparison:
    """Take the build to where the live tables are in one snapshot, and compare the two in it: all rows, or those that were not
    found equal before. Nobody is stopped.
    """
    unverified = candidate.unverified
    assert unverified is not None, "somebody wants to know"
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    try:
        async with connection.transaction():
            await candidate.step(connection, await candidate.goal(connection))
            if candidate.live is None:
                return Comparison()
            await connection.execute(_WHOLE_TABLES)
            scope = Scope() if everything else unverified.scope()
            comparison = await compare(connection, candidate.projection, candidate.build, scope)
    finally:
        await connection.set_isolation_level(None)
    unverified.clear()
    return comparison


async def come_near(connection: AsyncConnection, candidate: Candidate) -> int:
    """The same, with rests between the steps and without a comparison."""
    events = 0
    for _ in range(STEPS_MAX):
        async with connection.transaction():
            step = await candidate.step(connection, await candidate.goal(connection))
        events += step.events
        if step.events <= NEAR_EVENTS and step.read <= NEAR_READ:
            break
        await candidate.pace.rest_async(connection, factor_max=REST_FACTOR_MAX)
    return events
