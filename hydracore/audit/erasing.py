"""Erases a customer: destroys their key, and records that in each of their streams.

Intent, effect, observation: first the order is written to a file outside the database, then the key is destroyed,
then the events are appended. Each step skips what is done already. So an erasure that was interrupted anywhere is
completed by ordering it again or by `db migrate`. The next API process that starts destroys the key as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec
import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events import keys
from events.commands import EraseCustomer
from events.errors import EventsError, StoreUnavailable
from events.ids import command_id_for
from events.record import Origin
from events.retries import RETRY_S_MAX, run, with_retries
from events.sql import Statements
from events.store import EventStore
from hydracore.audit.erasure_file import Erasure, ErasureFile
from hydracore.audit.errors import NAMED_MAX, CustomerUnclear, ErasureNotRecorded, ErasuresUnknown, InstancesNotDeleted
from hydracore.wording import plural

_SQL = Statements("hydracore.audit", "erasing.sql")
_TENANTS_WITH_CUSTOMER = _SQL["tenants_with_customer"]
_CUSTOMER = _SQL["customer"]
_UNRECORDED_INSTANCES = _SQL["unrecorded_instances"]
_ERASED_CUSTOMERS = _SQL["erased_customers"]

#: How long a text may be on its way into the log after it was sealed, unless the log is in trouble. In
#: streams that begin even later, the worker that advances them records the erasure (`workers.erasure`).
APPEND_S = RETRY_S_MAX

_log = structlog.get_logger(__name__)


class Customer(msgspec.Struct, frozen=True, kw_only=True):
    """`live`: the instances that are not deleted."""

    tenant_id: str
    customer_id: str
    instances: int
    live: list[UUID]


class ErasureProgress(NamedTuple):
    """Callbacks for the progress.

    `order_begun`: the order is about to be written to the file. `order_recorded`: it is there, and will be carried out even if
    this process is interrupted.
    `key_destroyed`: the key is destroyed for good. `instances_done`: takes the number of further instances in which
    the erasure was recorded or could not be recorded.
    """

    order_begun: Callable[[], None]
    order_recorded: Callable[[], None]
    key_destroyed: Callable[[], None]
    instances_done: Callable[[int], None]


class ErasureResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was done. `instances`, `live`: how many there are now. `recorded`: in how many the erasure was recorded just now."""

    tenant_id: str
    customer_id: str
    instances: int
    live: int
    recorded: int
    key_destroyed: bool


async def find_customer(pool: AsyncConnectionPool, customer_id: str, *, tenant_id: str | None) -> Customer:
    """The customer. Raises `CustomerUnclear` where no tenant has it, or several have and `tenant_id` is None."""

    async def read_customer(connection: AsyncConnection) -> tuple[list[str], Customer | None]:
        cursor = await connection.execute(_TENANTS_WITH_CUSTOMER, {"customer": customer_id})
        tenants = [tenant for (tenant,) in await cursor.fetchall()]
        wanted = tenants if tenant_id is None else [tenant for tenant in tenants if tenant == tenant_id]
        if len(wanted) != 1:
            return wanted, None
        cursor = await connection.execute(_CUSTOMER, {"tenant": wanted[0], "customer": customer_id})
        row = await cursor.fetchone()
        assert row is not None, "a select of values has a row"
        return wanted, Customer(tenant_id=wanted[0], customer_id=customer_id, instances=row[0], live=row[1])

    tenants, customer = await with_retries(pool, read_customer)
    if customer is not None:
        return customer
    if tenants:
        raise CustomerUnclear(f"Tenants {', '.join(tenants)} have a customer {customer_id}: choose one with --tenant")
    whose = "" if tenant_id is None else f" of tenant {tenant_id}"
    raise CustomerUnclear(f"There is no customer {customer_id}{whose}: no data was ever stored for them")


def require_all_deleted(customer: Customer) -> None:
    """Raise `InstancesNotDeleted` where an instance is not deleted: its server still has what would be erased."""
    if customer.live:
        named = ", ".join(map(str, customer.live[:NAMED_MAX])) + (", ..." if len(customer.live) > NAMED_MAX else "")
        which = "that is" if len(customer.live) == 1 else "that are"
        raise InstancesNotDeleted(
            f"Customer {customer.customer_id} of tenant {customer.tenant_id} has {plural(len(customer.live), 'instance')} {which} "
            f"not deleted ({named}). Delete them first, because their servers keep the customer's data, or use --also-live"
        )


class Eraser:
    """`actor`: who gives the order. `correlation_id`: that of all events that are recorded."""

    def __init__(
        self,
        pool: AsyncConnectionPool,
        store: EventStore,
        file: ErasureFile,
        *,
        actor: str,
        correlation_id: UUID,
        clock: Callable[[], datetime],
    ) -> None:
        self._pool = pool
        self._store = store
        self._file = file
        self._actor = actor
        self._correlation_id = correlation_id
        self._clock = clock

    async def erase(self, customer: Customer, progress: ErasureProgress) -> ErasureResult:
        """Carry out the whole erasure. Once that is done, repeating it does nothing.

        Raises `OSError`, `ErasuresUnknown` and `StoreUnavailable`; and, after doing all that can be done,
        `ErasureNotRecorded`.
        """
        who = (customer.tenant_id, customer.customer_id)
        listed = await _listed_erasures(self._pool, self._file)
        # From here on, an interruption may leave the order in the file: the thread that writes is not interrupted.
        progress.order_begun()
        if who in listed:
            await asyncio.to_thread(self._file.sync)
        else:
            await asyncio.to_thread(self._file.append, [self._order(who)])
        progress.order_recorded()
        destroyed = await keys.destroy(self._pool, [who])
        progress.key_destroyed()
        recorded = await self._record([who], destroyed, progress.instances_done)
        # Instances that were ordered meanwhile count as well.
        found = await find_customer(self._pool, customer.customer_id, tenant_id=customer.tenant_id)
        return ErasureResult(
            tenant_id=found.tenant_id,
            customer_id=found.customer_id,
            instances=found.instances,
            live=len(found.live),
            recorded=recorded,
            key_destroyed=bool(destroyed),
        )

    async def erase_again(self, file_completed: Callable[[int], None]) -> tuple[int, int, int]:
        """Erase again all customers in the file, and those whom only the database knows to be erased.

        Only a file that is not the newest lacks any: one that was lost, or replaced by an older copy. They are added to it.
        `file_completed`: takes their number then, before anything else may fail, because the next call finds the file complete.

        Returns the numbers of added erasures, of destroyed keys, and of streams that recorded it. Raises `OSError`, with all keys
        destroyed; `ErasuresUnknown` and `StoreUnavailable`; and, after doing all that can be done, `ErasureNotRecorded`.
        """
        listed, unlisted = await _known_erasures(self._pool, self._file)
        customers = [*listed, *unlisted]
        # Before the file is written, which may fail.
        destroyed = await keys.destroy(self._pool, customers)
        if unlisted:
            await asyncio.to_thread(self._file.append, [self._order(who) for who in unlisted])
            file_completed(len(unlisted))
        return len(unlisted), len(destroyed), await self._record(customers, destroyed, lambda _done: None)

    async def _record(
        self,
        customers: Sequence[tuple[str, str]],
        destroyed: Collection[tuple[str, str]],
        progress: Callable[[int], None],
    ) -> int:
        """Record the erasures in all streams that lack them. Returns the number of streams in which that was done."""
        parameters = {"tenants": [tenant for tenant, _ in customers], "customers": [each for _, each in customers]}

        async def read_streams(connection: AsyncConnection) -> list[UUID]:
            return [
                stream for (stream,) in await (await connection.execute(_UNRECORDED_INSTANCES, parameters)).fetchall()
            ]

        if not destroyed and not await with_retries(self._pool, read_streams):
            return 0
        recorded, failed = 0, dict[UUID, str]()
        # For `CACHE_S` a process that has just read the key may seal with it. For another `APPEND_S`,
        # what it has sealed may begin or change a stream, in which the erasure has to be recorded, too.
        for wait_s in (keys.CACHE_S, APPEND_S):
            await asyncio.sleep(wait_s)
            streams = [stream for stream in await with_retries(self._pool, read_streams) if stream not in failed]
            failed_now = await self._record_in_each(streams, progress)
            recorded += len(streams) - len(failed_now)
            failed |= failed_now
        # A standby that still has the keys may have taken over meanwhile.
        await keys.destroy(self._pool, customers)
        if failed:
            raise ErasureNotRecorded(failed, recorded=recorded)
        return recorded

    async def _record_in_each(self, streams: Sequence[UUID], progress: Callable[[int], None]) -> dict[UUID, str]:
        """Record the erasure in these streams. Returns those in which it could not be, with the reason."""
        failed: dict[UUID, str] = {}
        for stream_id in streams:
            try:
                await self._record_in(stream_id)
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - a broken history must not prevent the others
                # The text of any other error is not shown: it may quote an event.
                failed[stream_id] = str(error) if isinstance(error, EventsError) else type(error).__name__
            progress(1)
        return failed

    async def _record_in(self, stream_id: UUID) -> None:
        command = EraseCustomer(at_ms=int(self._clock().timestamp() * 1000))
        await self._store.execute(stream_id, command, self._origin(stream_id))

    def _order(self, who: tuple[str, str]) -> Erasure:
        return Erasure(tenant_id=who[0], customer_id=who[1], ordered_at=self._clock(), by=self._actor)

    def _origin(self, stream_id: UUID) -> Origin:
        return Origin(
            actor=self._actor,
            command_id=command_id_for(stream_id, "erase-customer"),
            correlation_id=self._correlation_id,
        )


async def destroy_restored_keys(pool: AsyncConnectionPool, file: ErasureFile) -> None:
    """Destroy the keys of erased customers that a restore has brought back. Call it before opening any field.

    A customer who is erased by the log alone counts as well: the file may be an older copy.

    Raises `ErasuresUnknown` and `StoreUnavailable`.
    """
    listed, unlisted = await _known_erasures(pool, file)
    if unlisted:
        hint = (
            "the file is older than the database: provide the newest, or run hydracore db migrate to complete this one"
        )
        _log.warning("erasures_not_listed", count=len(unlisted), file=str(file.path), hint=hint)
    destroyed = await keys.destroy(pool, [*listed, *unlisted])
    if destroyed:
        _log.warning("erased_keys_destroyed_again", count=len(destroyed), hint="run hydracore db migrate")


async def require_no_erasures(pool: AsyncConnectionPool) -> None:
    """Raise `ErasuresUnknown` where the database has erased customers. Raises `StoreUnavailable`.

    For processes that have no file of erasures, before they serve customers or migrate a restored database.
    """
    if await _erased_customers(pool):
        raise ErasuresUnknown(None, "the database has erased customers")


async def _listed_erasures(pool: AsyncConnectionPool, file: ErasureFile) -> dict[tuple[str, str], Erasure]:
    """The erasures in the file. It must exist (`ErasuresUnknown`), unless the database has no erased customers."""
    erasures = await asyncio.to_thread(file.erasures)
    if erasures:
        return erasures
    return await asyncio.to_thread(file.erasures, must_exist=bool(await _erased_customers(pool)))


async def _known_erasures(
    pool: AsyncConnectionPool, file: ErasureFile
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The customers in the file, and those whom only the database knows to be erased. Raises as `_listed_erasures`."""
    # The database first: an order is in the file before the database has anything of it.
    erased = await _erased_customers(pool)
    listed = await asyncio.to_thread(file.erasures, must_exist=bool(erased))
    return list(listed), [who for who in erased if who not in listed]


async def _erased_customers(pool: AsyncConnectionPool) -> list[tuple[str, str]]:
    """The customers who are erased by what the database knows."""
    return [(tenant, customer) for tenant, customer in await run(pool, _ERASED_CUSTOMERS)]
