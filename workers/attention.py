"""The pace of the work on each instance: when to look again, and for how long it has been failing.

Kept in PostgreSQL, so that a timer or a backoff survives whatever happens to Redis or to the worker that set it.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from events.ids import lane_of
from events.patience import run
from events.sql import Statements

_SQL = Statements("workers", "attention.sql")
_POSTPONE = _SQL["postpone"]
_FAIL = _SQL["fail"]
_CARRY = _SQL["carry"]
_CLEAR = _SQL["clear"]
_FORGET = _SQL["forget"]
_FORGET_SETTLED = _SQL["forget_settled"]
_CLAIM_DUE = _SQL["claim_due"]

#: The longest pause between two tries, and one that is longer than any, with what is added to a pause at random.
BACKOFF_S_MAX = 60.0
PAUSE_S_MAX = 2 * BACKOFF_S_MAX

#: How long a hint may take to be acted on before another one is sent: what the loss of one, or of a worker, costs.
LEASE_S = 2.0

#: How long fresh work is left to the relay, which saw its event, before the reconciler takes an interest.
GRACE_S = 1.0

#: How many instances one look of the reconciler takes up.
CLAIM_MAX = 500


class Attention:
    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    async def postpone(self, instance_id: UUID, *, version: int, delay_s: float) -> None:
        """Look again in `delay_s`, or after the longest pause, unless the stream leaves `version` before, or has left it already.

        Nothing is wrong, it just takes its time.
        """
        pause_s = min(delay_s, BACKOFF_S_MAX)
        await run(self._pool, _POSTPONE, _key(instance_id) | {"version": version, "delay_s": pause_s})

    async def fail(self, instance_id: UUID, *, version: int | None, code: str, delay_s: float) -> int | None:
        """Look again after `delay_s` at least, and ever later while the stream stays at `version` and it fails alike; how often that was.
        Without a version: that of the read table, for whoever could not read the stream.

        None where the stream has left it already: somebody else has gone on, and nothing has failed that still counts.
        """
        assert delay_s <= BACKOFF_S_MAX, delay_s
        rows = await run(
            self._pool,
            _FAIL,
            _key(instance_id) | {"version": version, "code": code, "delay_s": delay_s, "backoff_s_max": BACKOFF_S_MAX},
        )
        return rows[0][0] if rows else None

    async def carry(self, instance_id: UUID, *, version: int) -> None:
        """What is written down at `version` holds at the next one as well: the event in between says nothing but that."""
        await run(self._pool, _CARRY, _key(instance_id) | {"version": version})

    async def clear(self, instance_id: UUID) -> None:
        """The work has moved on."""
        await run(self._pool, _CLEAR, (lane_of(instance_id), instance_id))

    async def forget(self, instance_id: UUID) -> None:
        """Remove all working data of an instance that is going away."""
        await run(self._pool, _FORGET, _key(instance_id))

    async def forget_settled(self) -> None:
        """Remove what killed workers have left of instances that need none any more."""
        await run(self._pool, _FORGET_SETTLED)

    async def claim_due(self) -> list[UUID]:
        """Instances that work is owed to and that nobody has been sent to lately, marked as sent to now.

        One that has moved since its pause was made is due as if there were none.
        """
        rows = await run(
            self._pool,
            _CLAIM_DUE,
            {"lease_s": LEASE_S, "grace_s": GRACE_S, "pause_s_max": PAUSE_S_MAX, "limit": CLAIM_MAX},
        )
        return [row[0] for row in rows]


def _key(instance_id: UUID) -> dict[str, Any]:
    return {"lane": lane_of(instance_id), "instance_id": instance_id}
