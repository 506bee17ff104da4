"""Prepare a swap: bring the build close to the live tables and compare it with them, while others go on writing."""

from __future__ import annotations

from psycopg import AsyncConnection

from events.sql import Statements
from projections.candidate import Candidate
from projections.drift import Comparison, Scope, compare
from projections.errors import ParityMismatch
from projections.swap import READ_MAX

_SQL = Statements("projections", "drift.sql")
_ONE_SNAPSHOT = _SQL["one_snapshot"]
_WHOLE_TABLES = _SQL["whole_tables"]

#: The swap is tried once a step applied at most this many events and read at most that many, or after this many steps.
CLOSE_EVENTS = 200
CLOSE_READ = READ_MAX // 2
STEPS_MAX = 20

#: The longest rest after a step, as a multiple of it. The log grows meanwhile, and has to be folded too.
REST_FACTOR_MAX = 1.0

#: The most streams to compare while writers are stopped. If there are more, they are compared before.
UNVERIFIED_MAX = 500


async def prepare_swap(connection: AsyncConnection, candidate: Candidate) -> int:
    """Bring the build so close to the live tables that a swap is quick. Returns how many events were applied.

    Raises `ParityMismatch` where something that is compared on the way differs.
    """
    events = await catch_up(connection, candidate)
    if candidate.unverified is not None and len(candidate.unverified.streams) > UNVERIFIED_MAX:
        comparison = await compare_with_live(connection, candidate, everything=False)
        if comparison.drifted:
            raise ParityMismatch(candidate.build.name, comparison)
        events += await catch_up(connection, candidate)
    return events


async def compare_with_live(connection: AsyncConnection, candidate: Candidate, *, everything: bool) -> Comparison:
    """Bring the build to the position of the live tables in one snapshot, and compare them there. Nobody is stopped.

    `everything`: compare all rows, and not only those that changed since they were last found equal.
    """
    unverified = candidate.unverified
    assert unverified is not None, "the candidate is to be compared"
    async with connection.transaction():
        await connection.execute(_ONE_SNAPSHOT)
        await candidate.step(connection, await candidate.live_positions(connection))
        if candidate.live is None:
            return Comparison()
        await connection.execute(_WHOLE_TABLES)
        scope = Scope() if everything else unverified.scope()
        comparison = await compare(connection, candidate.projection, candidate.build, candidate.live, scope)
    unverified.clear()
    return comparison


async def catch_up(connection: AsyncConnection, candidate: Candidate) -> int:
    """Step until little is left, with rests and without a comparison. Returns how many events were applied."""
    events = 0
    for _ in range(STEPS_MAX):
        async with connection.transaction():
            step = await candidate.step(connection, await candidate.live_positions(connection))
        events += step.events
        if step.events <= CLOSE_EVENTS and step.read <= CLOSE_READ:
            break
        await candidate.pace.rest_async(connection, factor_max=REST_FACTOR_MAX)
    return events
