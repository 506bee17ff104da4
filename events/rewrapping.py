"""Customers' keys after a change of the master key: all are wrapped anew with the present one, while the service goes on.

A batch is a transaction: whoever is killed has done all or nothing of it, and whoever begins again passes over what is done. A key
that was destroyed has nothing to wrap, and stays so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from events.master_keys import MasterKeys
from events.patience import patiently, run
from events.sql import Statements
from events.wrapping import Wrapping

_SQL = Statements("events", "rewrapping.sql")
_READ = _SQL["wrapped_keys"]
_HOLD = _SQL["hold_wrapped_keys"]
_COUNT = _SQL["count_wrapped_keys"]
_REPLACE = _SQL["replace_keys"]

#: How many keys are held at a time, for milliseconds: an erasure of one of them waits so long.
BATCH = 500
#: How many are only looked at in one go.
PAGE = 5_000

#: Customers' ids are never empty.
_BEFORE_ALL = ("", "")


class CustomerKeys(msgspec.Struct, kw_only=True):
    """How many there are that are not destroyed, by what opens them."""

    present: int = 0
    former: int = 0
    unreadable: int = 0


async def count(pool: AsyncConnectionPool) -> int:
    """Raises `StoreUnavailable`."""
    ((number,),) = await run(pool, _COUNT)
    return number


async def survey(
    pool: AsyncConnectionPool, master_keys: MasterKeys, progress: Callable[[int], None] = lambda _: None
) -> CustomerKeys:
    """Try them all. Raises `StoreUnavailable`."""
    wrapping, found = Wrapping(master_keys), CustomerKeys()
    async for rows in _pages(pool):
        for tenant, customer, wrapped in rows:
            unwrapped = wrapping.unwrap(wrapped, tenant, customer)
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
    """Wrap with the present master key whatever a former one opens: how many that were. Raises `StoreUnavailable`.

    Those that somebody else holds at the moment are left as they are, for the next time.
    """
    wrapping, replaced, last = Wrapping(master_keys), 0, _BEFORE_ALL

    async def batch(connection: AsyncConnection) -> tuple[list[TupleRow], int]:
        async with connection.transaction():
            rows = await (await connection.execute(_HOLD, _page(last, BATCH))).fetchall()
            anew = list(_rewrapped(wrapping, rows))
            if anew:
                tenants, customers, keys = map(list, zip(*anew, strict=True))
                await connection.execute(_REPLACE, {"tenants": tenants, "customers": customers, "keys": keys})
        return rows, len(anew)

    while True:
        rows, done = await patiently(pool, batch)
        if not rows:
            return replaced
        replaced += done
        last = (rows[-1][0], rows[-1][1])
        progress(len(rows))


def _rewrapped(wrapping: Wrapping, rows: list[TupleRow]) -> Generator[tuple[str, str, bytes]]:
    for tenant, customer, wrapped in rows:
        unwrapped = wrapping.unwrap(wrapped, tenant, customer)
        if unwrapped is not None and not unwrapped.by_present:
            yield tenant, customer, wrapping.wrap(unwrapped.key, tenant, customer)


async def _pages(pool: AsyncConnectionPool) -> AsyncGenerator[list[TupleRow]]:
    last = _BEFORE_ALL
    while rows := await run(pool, _READ, _page(last, PAGE)):
        yield rows
        last = (rows[-1][0], rows[-1][1])


def _page(last: tuple[str, str], limit: int) -> dict[str, object]:
    return {"tenant": last[0], "customer": last[1], "limit": limit}
