"""The state of an instance in the past: its events folded up to a version, or up to a time by the log's clock.

There is one fold (`events.evolve`), for writing, replay and audit alike. A stream is read a page at a
time, so that memory holds one page however long the stream is. A stream that contradicts itself raises
`LogCorrupted` with the place, rather than giving a state that looks right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events import pages
from events.folding import fold_page, version_of
from events.ids import lane_of
from events.retries import with_retries
from events.sql import Statements
from events.state import Instance
from hydracore.audit.errors import NotInLog
from hydracore.audit.timestamps import require_time, time_text

_SQL: Final = Statements("hydracore.audit", "history.sql")
_TO_FOLD: Final = pages.insert_weight(_SQL["to_fold"])
_RECORDED_AT: Final = _SQL["recorded_at"]

#: The most events of a stream that are read at a time.
EVENTS_PER_PAGE: Final = 2_000

#: The events that are folded before the event loop gets control back: the API answers other requests in it.
YIELD_EVERY: Final = 200


class HistoricalState(NamedTuple):
    """The state of an instance after one of its events, and when that event was recorded."""

    state: Instance
    recorded_at: datetime


async def state_at(
    pool: AsyncConnectionPool, instance_id: UUID, *, version: int | None = None, at: datetime | None = None
) -> HistoricalState:
    """The instance at a version of its stream, or at a time; now, where neither is given.

    Raises `NotInLog` where there is no such instance, or not at that version or time.
    """
    state = await fold_forward(pool, instance_id, None, upto=version, at=at)
    if state is None:
        raise NotInLog(await absence_reason(pool, instance_id))
    if version is not None and state.version < version:
        raise NotInLog(f"The instance is at version {state.version}; it has no version {version} yet")
    recorded_at = await _recorded_at(pool, instance_id, state.version)
    assert recorded_at is not None, "an event that was just read"
    return HistoricalState(state, recorded_at)


async def fold_forward(
    pool: AsyncConnectionPool,
    stream_id: UUID,
    state: Instance | None,
    *,
    upto: int | None = None,
    at: datetime | None = None,
) -> Instance | None:
    """Fold the events that follow `state`, up to a version and a time. Returns the new state, None without events."""
    while True:
        page, is_last = await read_page(pool, _TO_FOLD, stream_id, after=version_of(state), upto=upto, at=at)
        for begin in range(0, len(page), YIELD_EVERY):
            state = fold_page(state, page[begin : begin + YIELD_EVERY], stream_id=stream_id)
            await asyncio.sleep(0)
        if is_last:
            return state


async def absence_reason(pool: AsyncConnectionPool, instance_id: UUID) -> str:
    """Why an instance has no state at some version or time, as a sentence."""
    began = await _recorded_at(pool, instance_id, 1)
    if began is None:
        return f"There is no instance {instance_id}"
    return f"The instance began at {time_text(began)}; it did not exist before"


async def _recorded_at(pool: AsyncConnectionPool, instance_id: UUID, version: int) -> datetime | None:
    found = await fetch_rows(pool, _RECORDED_AT, {**stream_parameters(instance_id), "version": version})
    return require_time(lane_of(instance_id), *found[0]) if found else None


async def read_page(
    pool: AsyncConnectionPool, statement: bytes, stream_id: UUID, **bounds: Any
) -> tuple[list[Any], bool]:
    """The next page of a stream, and whether it is the last one. Raises as `fetch_rows` does."""
    limits = {"limit": EVENTS_PER_PAGE, "bytes": pages.PAGE_BYTES}
    found = await fetch_rows(pool, statement, {**stream_parameters(stream_id), **limits, **bounds})
    weight = found[-1][-1] if found else 0
    is_last = not pages.is_full(events=len(found), events_max=EVENTS_PER_PAGE, weight=weight)
    return [row[:-1] for row in found], is_last


async def fetch_rows(pool: AsyncConnectionPool, statement: bytes, parameters: Mapping[str, Any]) -> list[Any]:
    """The rows of one statement, as tuples. Raises `StoreUnavailable` and psycopg's errors."""

    async def fetch(connection: AsyncConnection) -> list[Any]:
        # In the binary format, because writing and reading numbers and times as text takes both sides longer.
        return await (await connection.execute(statement, parameters, prepare=True, binary=True)).fetchall()

    return await with_retries(pool, fetch)


def stream_parameters(stream_id: UUID) -> dict[str, Any]:
    """The lane and the id of a stream, as parameters."""
    return {"lane": lane_of(stream_id), "stream_id": stream_id}
