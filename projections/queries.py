"""Queries of the read tables for the API. Each is one statement on an autocommit connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.ids import lane_of
from events.lifecycle import DELETED, Status
from events.retries import with_retries
from events.sql import Statements, template
from events.types import Health
from projections.coalesce import Coalescer

Row = TypeVar("Row")
Parameters = tuple[Any, ...] | Mapping[str, Any]

_SQL = Statements("projections", "queries.sql")
_INSTANCES = _SQL["instances"]
_AGENT_KEYS = _SQL["agent_keys"]
_REPORT = _SQL["report"]
_NEWEST_OF_TENANT = _SQL["newest_of_tenant"]
_NEWEST_OF_ALL = _SQL["newest_of_all"]
_LISTED = _SQL["listed"]


def _list(of: str, rows: str) -> bytes:
    return template(_SQL["list"]).format(rows=template(_SQL[rows]).format(of=template(_SQL[of]))).as_bytes(None)


#: The statements of lists, by whose instances and which of them.
_LISTS = {
    (of, rows): _list(of, rows) for of in ("of_customer", "of_tenant", "of_all") for rows in ("live", "live_or_deleted")
}

#: The most lines of an instance's provision log per answer: the latest ones.
LINES_MAX = 1_000


class ShownRow(msgspec.Struct, frozen=True):
    """What any view of an instance shows, and its owner. Times are RFC 3339 text in UTC."""

    tenant_id: str
    customer_id: str
    agent_name: str | None
    created_at: str
    hostname: str | None
    id: str
    ip_address: str | None
    preset_id: str
    provider: str | None
    region_id: str
    runtime_type: str
    status: Status
    workload_type: str


class InstanceRow(ShownRow, frozen=True):
    """One instance as its view shows it."""

    key: UUID
    bootstrap_seq: int | None
    bootstrap_stage: str | None
    capabilities: dict[str, bool]
    error_code: str | None
    health_status: Health | None
    provisioning_stage: str
    server_type: str | None
    updated_at: str
    vpn_ip: str | None


class AgentKeyRow(msgspec.Struct, frozen=True):
    """`key_hash`: the SHA-256 of the agent's key in hex; None while it has none."""

    id: UUID
    status: Status
    key_hash: str | None


class ListedKey(NamedTuple):
    """One instance of a list, and its version. The row of an instance changes only with its version.

    `id` stays the text that it arrives as, which keys most lookups of list rows: converting all to UUIDs would take
    three times as long as reading the keys.
    """

    id: str
    version: int


class ListedRow(ShownRow, frozen=True):
    """What a list shows of an instance; `customer_email` is ciphertext."""

    version: int
    customer_email: str | None
    tier_name: str | None


class ReportRow(msgspec.Struct, frozen=True):
    """How an instance is doing.

    `lines`: JSON, the latest `LINES_MAX` lines of its provision log, oldest first. `lines_total`: how many lines that
    log has. `heartbeat`: the JSON that the agent sent last, at `heartbeat_at`, which is `heartbeat_age_s` ago by the
    database's clock.
    """

    tenant_id: str
    customer_id: str
    id: UUID
    status: Status
    provisioning_stage: str
    bootstrap_stage: str | None
    bootstrap_seq: int | None
    hostname: str | None
    health_status: Health | None
    error_code: str | None
    lines_total: int
    lines: str
    heartbeat_at: str | None
    heartbeat_age_s: float | None
    heartbeat: str | None


class ListFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which instances to list, newest first. `tenant_id`: None for all tenants. `customer_id`: None for all customers.

    `before`: only instances older than this (created_at, id), the last one of the page before.
    """

    tenant_id: str | None
    customer_id: str | None
    status: Status | None = None
    include_deleted: bool = False
    before: tuple[datetime, UUID] | None = None
    limit: int = 1_000


class Queries:
    """Queries on an open pool of autocommit connections. All raise `StoreUnavailable` and psycopg's errors."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool
        self._instances: Coalescer[UUID, InstanceRow] = Coalescer(self._fetch_instances)
        self._agent_keys: Coalescer[UUID, AgentKeyRow] = Coalescer(self._fetch_agent_keys)

    async def instance(self, instance_id: UUID) -> InstanceRow | None:
        return await self._instances.get(instance_id)

    async def agent_key(self, instance_id: UUID) -> AgentKeyRow | None:
        """What an agent's key is checked against."""
        return await self._agent_keys.get(instance_id)

    async def report(self, instance_id: UUID) -> ReportRow | None:
        parameters = {"lane": lane_of(instance_id), "id": instance_id, "lines_max": LINES_MAX}
        rows = await self._rows(ReportRow, _REPORT, parameters)
        return rows[0] if rows else None

    async def newest_by_key(self, *, tenant_id: str | None, idempotency_key: str) -> UUID | None:
        """The newest instance that was requested with this key, by any customer of the tenant (None: of any tenant)."""
        statement = _NEWEST_OF_ALL if tenant_id is None else _NEWEST_OF_TENANT
        parameters = {"tenant_id": tenant_id, "idempotency_key": idempotency_key}
        rows: list[UUID] = await self._rows(_identity, statement, parameters)
        return rows[0] if rows else None

    async def list_text(self, wanted: ListFilter) -> str:
        """The ids and versions of a list's instances, in order, as one text for `listed_keys`.

        Lists with equal texts hold equal rows, so that an answer that was made from the same text can be used again.
        """
        statement, parameters = _list_statement(wanted)
        [text] = await self._rows(str, statement, parameters)
        return text

    async def listed(self, ids: list[str]) -> list[ListedRow]:
        """The list rows of these instances, by the ids of their `ListedKey`s, in no order."""
        return await self._rows(ListedRow, _LISTED, ([lane_of(UUID(each)) for each in ids], ids))

    async def _fetch_instances(self, ids: list[UUID]) -> dict[UUID, InstanceRow]:
        rows = await self._rows(InstanceRow, _INSTANCES, ([lane_of(each) for each in ids], ids))
        return {row.key: row for row in rows}

    async def _fetch_agent_keys(self, ids: list[UUID]) -> dict[UUID, AgentKeyRow]:
        rows = await self._rows(AgentKeyRow, _AGENT_KEYS, ([lane_of(each) for each in ids], ids))
        return {row.id: row for row in rows}

    async def _rows(self, make: Callable[..., Row], statement: bytes, parameters: Parameters) -> list[Row]:
        """The rows of a statement, each made by `make` from its columns in order."""

        async def read(connection: AsyncConnection) -> list[Row]:
            cursor = connection.cursor()
            await cursor.execute(statement, parameters, prepare=True)
            return [make(*values) for values in await cursor.fetchall()]

        return await with_retries(self._pool, read)


def listed_keys(text: str) -> list[ListedKey]:
    """The keys in a text of `Queries.list_text`."""
    pairs = (pair.split(" ") for pair in text.split(",") if pair)
    return [ListedKey(each, int(version)) for each, version in pairs]


def _list_statement(wanted: ListFilter) -> tuple[bytes, Mapping[str, Any]]:
    of = "of_customer" if wanted.customer_id is not None else "of_tenant"
    if wanted.tenant_id is None:
        of = "of_all"
    only_deleted = wanted.status == DELETED
    # With any other status an instance is not deleted, so that `include_deleted` makes no difference.
    rows = "live_or_deleted" if only_deleted or (wanted.include_deleted and wanted.status is None) else "live"
    return _LISTS[of, rows], {
        "tenant_id": wanted.tenant_id,
        "customer_id": wanted.customer_id,
        "status": wanted.status,
        "alive": [False] if only_deleted else [True, False],
        "before": None if wanted.before is None else wanted.before[0],
        "before_id": None if wanted.before is None else wanted.before[1],
        "limit": wanted.limit,
    }


def _identity(value: UUID) -> UUID:
    return value
