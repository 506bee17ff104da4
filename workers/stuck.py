"""Finds what makes no progress: instances, servers, lanes and the relay. It reads the database alone, and changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from events.failures import describe
from events.lifecycle import Status
from events.retries import with_retries
from events.sql import Statements

_SQL = Statements("workers", "stuck.sql")
_INSTANCES = _SQL["instances"]
_SERVERS = _SQL["servers"]
_LANES = _SQL["lanes"]
_RELAY = _SQL["relay"]

#: The most instances that are listed, the longest stuck first.
INSTANCES_MAX: Final = 1_000

#: A relay performs a duty every second. One that has not done so for this long does not run.
RELAY_S_MIN: Final = 10.0


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


class StuckServer(msgspec.Struct, frozen=True):
    """A server that the sweep watches. `unaccounted`: no instance accounts for it. `missing`: its provider does not show it."""

    provider: str
    server_id: str
    what: Literal["unaccounted", "missing"]
    since: datetime


class ParkedLane(msgspec.Struct, frozen=True):
    """A lane that `follower` cannot read on, because of `error` at its event number `event`."""

    follower: str
    lane: int
    event: int
    error: str


class Stuck(msgspec.Struct, frozen=True):
    """`relay_absent`: no relay works; the last one did so at `relay_seen_at`, or never did if that is None."""

    instances: list[StuckInstance]
    servers: list[StuckServer]
    lanes: list[ParkedLane]
    relay_absent: bool
    relay_seen_at: datetime | None

    @property
    def count(self) -> int:
        return len(self.instances) + len(self.servers) + len(self.lanes) + self.relay_absent


async def find_stuck(pool: AsyncConnectionPool, *, after_s: float) -> Stuck:
    """What has made no progress for `after_s` seconds: at most `INSTANCES_MAX` instances. Lanes are listed from the moment they park.

    Raises the errors of `with_retries`.
    """

    async def read(connection: AsyncConnection) -> Stuck:
        async def rows(statement: Any, **values: Any) -> list[TupleRow]:
            return await (await connection.execute(statement, values)).fetchall()

        instances = await rows(_INSTANCES, after_s=after_s, limit=INSTANCES_MAX)
        servers = await rows(_SERVERS, after_s=after_s)
        lanes = await rows(_LANES)
        [(seen_at, is_absent)] = await rows(_RELAY, after_s=after_s, relay_s=RELAY_S_MIN)
        return Stuck(
            [_instance(row) for row in instances],
            [StuckServer(provider, server_id, what, _utc(since)) for provider, server_id, what, since in servers],
            [ParkedLane(*row) for row in lanes],
            is_absent,
            None if seen_at is None else _utc(seen_at),
        )

    return await with_retries(pool, read)


def _instance(row: TupleRow) -> StuckInstance:
    instance_id, tenant_id, status, provider, due_since, failures, code = row
    message = None if code is None else describe(code)
    return StuckInstance(instance_id, tenant_id, status, provider, _utc(due_since), failures, code, message)


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC)
