"""Rewraps all customers' keys with the present master key after it was replaced, while the service runs.

Each batch is a transaction, and a repeated run skips keys that are done, so it can be killed at any point. Destroyed keys stay as they
are.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from events.master_keys import MasterKeys
from events.retries import run, with_retries
from events.sql import Statements
from events.wrapping import KeyWrapper

_SQL = Statements("events", "rewrapping.sql")
_READ = _SQL["wrapped_keys"]
_LOCK = _SQL["lock_wrapped_keys"]
_COUNT = _SQL["count_wrapped_keys"]
_REPLACE = _SQL["replace_keys"]

#: Keys that are locked at a time, for milliseconds. An erasure of one of them waits that long.
BATCH = 500
#: Keys that a survey reads at a time.
PAGE = 5_000

#: Customers' ids are never empty.
_BEFORE_ALL = ("", "")


class KeyCounts(msgspec.Struct, kw_only=True):
    """The number of keys that are not destroyed, by the master key that unwraps them."""

    present: int = 0
    former: int = 0
    unreadable: int = 0


async def count_keys(pool: AsyncConnectionPool) -> int:
    """The number of customers' keys. Raises `StoreUnavailable`."""
    ((number,),) = await run(pool, _COUNT)
    return number


async def count_by_master_key(
    pool: AsyncConnectionPool, master_keys: MasterKeys, progress: Callable[[int], None] = lambda _: None
) -> KeyCounts:
    """Try to unwrap all keys. `progress` is called with the number of keys that were tried. Raises `StoreUnavailable`."""
    wrapper, found = KeyWrapper(master_keys), KeyCounts()
    async for rows in _pages(pool):
        for tenant, customer, wrapped in rows:
            unwrapped = wrapper.unwrap(wrapped, tenant, customer)
            if unwrapped is None:
                found.unreadable += 1
            elif unwrapped.by_present:
                found.present += 1
            else:
                found.former += 1
        progress(len(rows))
    return found


async def rewrap(
    pool: AsyncConnectionPool, master_keys: MasterKeys, progress: Callable[[int], None] = lambda _: None
) -> int:
    """Wrap all keys that a former master key unwraps with the present one. Returns how many there were.

    Keys that another session has locked are skipped; the next run takes them. `progress` is called with the number of keys that were
    looked at. Raises `StoreUnavailable`.
    """
    wrapper, replaced, last = KeyWrapper(master_keys), 0, _BEFORE_ALL

    async def batch(connection: AsyncConnection) -> tuple[list[TupleRow], int]:
        # One transaction, so that the keys stay locked from the read to the write: an erasure in between would be undone.
        async with connection.transaction():
            rows = await (await connection.execute(_LOCK, _page(last, BATCH))).fetchall()
            rewrapped = list(_rewrapped(wrapper, rows))
            if rewrapped:
                tenants, customers, keys = map(list, zip(*rewrapped, strict=True))
                await connection.execute(_REPLACE, {"tenants": tenants, "customers": customers, "keys": keys})
        return rows, len(rewrapped)

    while True:
        rows, done = await with_retries(pool, batch)
        if not rows:
            return replaced
        replaced += done
        last = (rows[-1][0], rows[-1][1])
        progress(len(rows))


def _rewrapped(wrapper: KeyWrapper, rows: list[TupleRow]) -> Generator[tuple[str, str, bytes]]:
    for tenant, customer, wrapped in rows:
        unwrapped = wrapper.unwrap(wrapped, tenant, customer)
        if unwrapped is not None and not unwrapped.by_present:
            yield tenant, customer, wrapper.wrap(unwrapped.key, tenant, customer)


async def _pages(pool: AsyncConnectionPool) -> AsyncGenerator[list[TupleRow]]:
    last = _BEFORE_ALL
    while rows := await run(pool, _READ, _page(last, PAGE)):
        yield rows
        last = (rows[-1][0], rows[-1][1])


def _page(last: tuple[str, str], limit: int) -> dict[str, object]:
    return {"tenant": last[0], "customer": last[1], "limit": limit}
