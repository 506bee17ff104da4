"""Erases a customer: their key is destroyed, and each of their streams says so.

Intent, effect, observation: the order is written down outside the database first, then the key goes, then the events come. Each
step finds what is done already, so that an erasure which was cut off anywhere is completed by ordering it again, by `db
migrate`, or, as far as the key goes, by the next API process that starts.
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
from events.patience import PATIENCE_S, patiently, run
from events.record import Origin
from events.sql import Statements
from events.store import EventStore
from hydracore.audit.erasure_file import Erasure, ErasureFile
from hydracore.audit.errors import NAMED_MAX, CustomerUnclear, ErasuresUnknown, NotRecorded, StillThere
from hydracore.wording import plural

_SQL = Statements("hydracore.audit", "erasing.sql")
_TENANTS_OF = _SQL["tenants_of"]
_CUSTOMER = _SQL["customer"]
_WITHOUT_EVENT = _SQL["without_event"]
_ANY_ERASED = _SQL["any_erased"]

#: How long what was sealed with a key is on its way into the log at most after no process seals with it any more, unless the log is in
#: trouble. What begins a stream later, whoever takes it up tells (`workers.erasure`).
APPEND_S = PATIENCE_S

_log = structlog.get_logger(__name__)


class Customer(msgspec.Struct, frozen=True, kw_only=True):
    """`live`: the instances that are not deleted. `destroyed_at`: when the key was destroyed, None where it is not."""

    tenant_id: str
    customer_id: str
    instances: int
    live: list[UUID]
    destroyed_at: datetime | None


class Steps(NamedTuple):
    """Told what is done. `ordered`: whoever looks at the list next erases. `destroyed`: there is no way back. `told`: so many more
    instances.
    """

    ordered: Callable[[], None]
    destroyed: Callable[[], None]
    told: Callable[[int], None]


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """What was done. `recorded`: how many streams have been told just now."""

    tenant_id: str
    customer_id: str
    instances: int
    live: int
    recorded: int
    key_destroyed: bool


async def find(pool: AsyncConnectionPool, customer_id: str, *, tenant_id: str | None) -> Customer:
    """The customer. Raises `CustomerUnclear` where there is none, or where several tenants have one and none is named."""

    async def look(connection: AsyncConnection) -> tuple[list[str], Customer | None]:
        cursor = await connection.execute(_TENANTS_OF, {"customer": customer_id})
        tenants = [tenant for (tenant,) in await cursor.fetchall()]
        wanted = tenants if tenant_id is None else [tenant for tenant in tenants if tenant == tenant_id]
        if len(wanted) != 1:
            return wanted, None
        cursor = await connection.execute(_CUSTOMER, {"tenant": wanted[0], "customer": customer_id})
        row = await cursor.fetchone()
        assert row is not None, "a select of values has a row"
        return wanted, Customer(
            tenant_id=wanted[0], customer_id=customer_id, destroyed_at=row[0], instances=row[1], live=row[2]
        )

    tenants, customer = await patiently(pool, look)
    if customer is not None:
        return customer
    if tenants:
        raise CustomerUnclear(f"Tenants {', '.join(tenants)} have a customer {customer_id}: choose one with --tenant")
    whose = "" if tenant_id is None else f" of tenant {tenant_id}"
    raise CustomerUnclear(f"There is no customer {customer_id}{whose}: no data was ever stored for them")


def refuse_live(customer: Customer) -> None:
    """Raises `StillThere` where an instance is not deleted: its server still knows what would be erased here."""
    if customer.live:
        named = ", ".join(map(str, customer.live[:NAMED_MAX])) + (", ..." if len(customer.live) > NAMED_MAX else "")
        which = "that is" if len(customer.live) == 1 else "that are"
        raise StillThere(
            f"Customer {customer.customer_id} of tenant {customer.tenant_id} has {plural(len(customer.live), 'instance')} {which} "
            f"not deleted ({named}). Delete them first, because their servers keep the customer's data, or use --also-live"
        )


class Eraser:
    """`actor`: who gives the order. `correlation_id` is the same for all that this one does."""

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

    async def erase(self, customer: Customer, steps: Steps) -> Erased:
        """All of it; once it is done, doing it again does nothing.

        Raises `OSError`, `ErasuresUnknown`, `StoreUnavailable`, and `NotRecorded` once all has been done that can be.
        """
        who = (customer.tenant_id, customer.customer_id)
        if who in await _listed(self._pool, self._file):
            await asyncio.to_thread(self._file.sync)
        else:
            order = Erasure(tenant_id=who[0], customer_id=who[1], ordered_at=self._clock(), by=self._actor)
            await asyncio.to_thread(self._file.append, [order])
        steps.ordered()
        destroyed = await keys.destroy(self._pool, [who])
        steps.destroyed()
        recorded = await self._record([who], destroyed, steps.told)
        return Erased(
            tenant_id=customer.tenant_id,
            customer_id=customer.customer_id,
            instances=customer.instances,
            live=len(customer.live),
            recorded=recorded,
            key_destroyed=bool(destroyed),
        )

    async def redo(self) -> tuple[int, int]:
        """Erase again whoever is in the file: how many keys were there, and how many streams had to be told.

        Raises `ErasuresUnknown`, `StoreUnavailable`, and `NotRecorded` once all has been done that can be.
        """
        customers = list(await _listed(self._pool, self._file))
        destroyed = await keys.destroy(self._pool, customers)
        return len(destroyed), await self._record(customers, destroyed, lambda _done: None)

    async def _record(
        self,
        customers: Sequence[tuple[str, str]],
        destroyed: Collection[tuple[str, str]],
        progress: Callable[[int], None],
    ) -> int:
        parameters = {"tenants": [tenant for tenant, _ in customers], "customers": [each for _, each in customers]}

        async def look(connection: AsyncConnection) -> list[UUID]:
            return [stream for (stream,) in await (await connection.execute(_WITHOUT_EVENT, parameters)).fetchall()]

        if not destroyed and not await patiently(self._pool, look):
            return 0
        recorded, left = 0, dict[UUID, str]()
        # Until then a process that had just read a key may seal with it; and until then what it has sealed may begin a stream, or
        # change one, that is to be told too.
        for wait_s in (keys.CACHE_S, APPEND_S):
            await asyncio.sleep(wait_s)
            streams = [stream for stream in await patiently(self._pool, look) if stream not in left]
            could_not = await self._tell_all(streams, progress)
            recorded += len(streams) - len(could_not)
            left |= could_not
        # A standby that lacks this may have taken over meanwhile.
        await keys.destroy(self._pool, customers)
        if left:
            raise NotRecorded(left, recorded=recorded)
        return recorded

    async def _tell_all(self, streams: Sequence[UUID], progress: Callable[[int], None]) -> dict[UUID, str]:
        """Those that could not be told, with the reason."""
        left: dict[UUID, str] = {}
        for stream_id in streams:
            try:
                await self._tell(stream_id)
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - a history that somebody broke keeps no other from being told
                # Of others than our own errors no word: it may be of what an event says.
                left[stream_id] = str(error) if isinstance(error, EventsError) else type(error).__name__
            progress(1)
        return left

    async def _tell(self, stream_id: UUID) -> None:
        command = EraseCustomer(at_ms=int(self._clock().timestamp() * 1000))
        await self._store.execute(stream_id, command, self._origin(stream_id))

    def _origin(self, stream_id: UUID) -> Origin:
        return Origin(
            actor=self._actor,
            command_id=command_id_for(stream_id, "erase-customer"),
            correlation_id=self._correlation_id,
        )


async def destroy_again(pool: AsyncConnectionPool, file: ErasureFile) -> None:
    """Destroy the keys of erased customers that a restore has brought back. For whoever is about to open fields.

    Raises `ErasuresUnknown` and `StoreUnavailable`.
    """
    destroyed = await keys.destroy(pool, list(await _listed(pool, file)))
    if destroyed:
        _log.warning("erased_keys_destroyed_again", count=len(destroyed), hint="run hydracore db migrate")


async def refuse_unlisted(pool: AsyncConnectionPool) -> None:
    """For whoever was not told where the erased are listed, and is about to serve everybody, or to bring a restore up to date.

    Raises `ErasuresUnknown` where the database knows of erasures, and `StoreUnavailable`.
    """
    if await _any_erased(pool):
        raise ErasuresUnknown(None, "the database has erased customers")


async def _listed(pool: AsyncConnectionPool, file: ErasureFile) -> dict[tuple[str, str], Erasure]:
    """Who is in the file, which is there unless nobody was ever erased, as far as the database can tell."""
    erasures = await asyncio.to_thread(file.known)
    if erasures:
        return erasures
    return await asyncio.to_thread(file.known, must_be_there=await _any_erased(pool))


async def _any_erased(pool: AsyncConnectionPool) -> bool:
    ((is_any,),) = await run(pool, _ANY_ERASED)
    return is_any
