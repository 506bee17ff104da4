"""The schedule of work on instances: when to look at each again, how often its current step has failed, and since when.

It is kept in PostgreSQL, in the table `attention`, so that a timer or a backoff survives the loss of Redis and of the worker that set
it.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from events.ids import lane_of
from events.retries import run
from events.sql import Statements

_SQL = Statements("workers", "work_schedule.sql")
_POSTPONE = _SQL["postpone"]
_RECORD_FAILURE = _SQL["record_failure"]
_KEEP_AT_NEXT_VERSION = _SQL["keep_at_next_version"]
_CLEAR = _SQL["clear"]
_DELETE_WORKING_DATA = _SQL["delete_working_data"]
_DELETE_STALE = _SQL["delete_stale"]
_CLAIM_DUE = _SQL["claim_due"]

#: The longest backoff between two tries, and a limit that no pause exceeds, including the jitter that is added to it.
BACKOFF_S_MAX = 60.0
PAUSE_S_MAX = 2 * BACKOFF_S_MAX

#: After this time, another hint is sent for an instance whose work is still due: the delay that a lost hint or worker causes.
LEASE_S = 2.0

#: How long new work is left to the relay, which sends hints for new events, before the reconciler sends hints for it, too.
GRACE_S = 1.0

#: The most instances that one look of the reconciler claims.
CLAIM_MAX = 500


class WorkSchedule:
    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    async def postpone(self, instance_id: UUID, *, version: int, delay_s: float) -> None:
        """Look again after `delay_s` seconds, or after the longest pause if that is shorter. Nothing has failed.

        The pause ends early if the stream's version changes. If it is not `version` any more, nothing is written.
        """
        pause_s = min(delay_s, BACKOFF_S_MAX)
        await run(self._pool, _POSTPONE, _key(instance_id) | {"version": version, "delay_s": pause_s})

    async def record_failure(self, instance_id: UUID, *, version: int | None, code: str, delay_s: float) -> int | None:
        """Record a failure, to look again after a pause.

        The pause is `delay_s` seconds. It doubles, up to `BACKOFF_S_MAX`, with each failure of the same `code` at this version.

        `version`: the stream's version at the failure. None, if the stream could not be read, stands for that in the read table.

        Returns the number of such failures in a row. Returns None, and writes nothing, if the stream's version is another one by now:
        another worker has advanced the instance, so this failure does not count.
        """
        assert delay_s <= BACKOFF_S_MAX, delay_s
        rows = await run(
            self._pool,
            _RECORD_FAILURE,
            _key(instance_id) | {"version": version, "code": code, "delay_s": delay_s, "backoff_s_max": BACKOFF_S_MAX},
        )
        return rows[0][0] if rows else None

    async def keep_at_next_version(self, instance_id: UUID, *, version: int) -> None:
        """Let a pause and a count of failures at `version` hold at the next version, too, after an event that does not affect them."""
        await run(self._pool, _KEEP_AT_NEXT_VERSION, _key(instance_id) | {"version": version})

    async def clear(self, instance_id: UUID) -> None:
        """Remove the instance's pause and count of failures, as no work is due."""
        await run(self._pool, _CLEAR, (lane_of(instance_id), instance_id))

    async def delete_working_data(self, instance_id: UUID) -> None:
        """Remove all working data of an instance that is being deleted: its row here and its heartbeat."""
        await run(self._pool, _DELETE_WORKING_DATA, _key(instance_id))

    async def delete_stale(self) -> None:
        """Remove the rows of instances without work that is due, which killed workers have left behind."""
        await run(self._pool, _DELETE_STALE)

    async def claim_due(self) -> list[UUID]:
        """Claim instances with work that is due, so that no other reconciler sends hints for them within `LEASE_S`. Returns their ids.

        Instances in a pause or with a recent claim are skipped, unless their stream has changed since.
        """
        rows = await run(
            self._pool,
            _CLAIM_DUE,
            {"lease_s": LEASE_S, "grace_s": GRACE_S, "pause_s_max": PAUSE_S_MAX, "limit": CLAIM_MAX},
        )
        return [row[0] for row in rows]


def _key(instance_id: UUID) -> dict[str, Any]:
    return {"lane": lane_of(instance_id), "instance_id": instance_id}
