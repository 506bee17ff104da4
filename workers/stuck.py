"""Finds what makes no progress, or waits for an operator. It reads the database alone, and changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from events.failures import describe
from events.lifecycle import Status
from events.retries import with_retries
from events.sql import Statements
from workers.sweep_findings import Finding, ProviderLeft, SweepResult

_SQL = Statements("workers", "stuck.sql")
_INSTANCES = _SQL["instances"]
_LANES = _SQL["lanes"]
_SWEEP = _SQL["sweep"]
_RELAY = _SQL["relay"]

#: The most instances that are listed, those that are stuck longest.
INSTANCES_MAX: Final = 1_000

#: A relay performs a duty every second. One that has not done so for this long does not run.
RELAY_S_MIN: Final = 10.0

#: No sweep has ended for this many intervals: no worker runs, or none can do it.
SWEEP_INTERVALS: Final = 3

_decode_result: Final = msgspec.json.Decoder(SweepResult).decode


class StuckInstance(msgspec.Struct, frozen=True):
    """An instance whose next step is due since `due_since` and not done.

    `failures`: how often workers have tried the step in vain. `code` and `message`: why the last try failed. With 0 and None, no try
    has failed: the step waits for the provider, or for a worker.
    """

    id: UUID
    tenant_id: str
    status: Status
    provider: str | None
    due_since: datetime
    failures: int
    code: str | None
    message: str | None


class ParkedLane(msgspec.Struct, frozen=True):
    """A lane that `follower` cannot read on, because of `error` at its event number `event`."""

    follower: str
    lane: int
    event: int
    error: str


class Stuck(msgspec.Struct, frozen=True, kw_only=True):
    """What is stuck.

    `servers` and `providers`: what the last sweep, which ended at `swept_at`, left to an operator. `is_complete`: whether all stuck
    instances and servers are listed. `relay_absent` and `sweep_absent`: no relay works, or no sweep has ended for some intervals; the
    last time is None if there never was one.
    """

    instances: list[StuckInstance]
    servers: list[Finding]
    providers: list[ProviderLeft]
    lanes: list[ParkedLane]
    is_complete: bool
    relay_absent: bool
    relay_seen_at: datetime | None
    sweep_absent: bool
    swept_at: datetime | None

    @property
    def count(self) -> int:
        listed = len(self.instances) + len(self.servers) + len(self.providers) + len(self.lanes)
        return listed + self.relay_absent + self.sweep_absent


async def find_stuck(pool: AsyncConnectionPool, *, after_s: float, sweep_interval_s: float) -> Stuck:
    """What has made no progress for `after_s` seconds. What the sweep has left and parked lanes are listed at once.

    Raises the errors of `with_retries`.
    """

    async def read(connection: AsyncConnection) -> Stuck:
        async def rows(statement: Any, **values: Any) -> list[TupleRow]:
            return await (await connection.execute(statement, values)).fetchall()

        instances = await rows(_INSTANCES, after_s=after_s, limit=INSTANCES_MAX + 1)
        lanes = await rows(_LANES)
        swept = await rows(_SWEEP, after_s=after_s, sweep_s=SWEEP_INTERVALS * sweep_interval_s)
        [(seen_at, relay_absent)] = await rows(_RELAY, after_s=after_s, relay_s=RELAY_S_MIN)
        ended_at, text, sweep_absent = swept[0] if swept else (None, None, True)
        result = SweepResult([], 0, []) if text is None else _decode_result(text)
        return Stuck(
            instances=[_instance(row) for row in instances[:INSTANCES_MAX]],
            servers=result.servers,
            providers=result.providers,
            lanes=[ParkedLane(*row) for row in lanes],
            is_complete=len(instances) <= INSTANCES_MAX and len(result.servers) == result.servers_count,
            relay_absent=relay_absent,
            relay_seen_at=_utc(seen_at),
            sweep_absent=sweep_absent,
            swept_at=_utc(ended_at),
        )

    return await with_retries(pool, read)


def _instance(row: TupleRow) -> StuckInstance:
    instance_id, tenant_id, status, provider, due_since, failures, code = row
    message = None if code is None else describe(code)
    return StuckInstance(instance_id, tenant_id, status, provider, due_since.astimezone(UTC), failures, code, message)


def _utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.astimezone(UTC)
