"""`/v1/instances` and `/v1/instances/{id}`: list, show and delete instances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final
from uuid import UUID

import msgspec
from msgspec import Meta

from events.commands import RequestDeletion
from events.failures import describe
from events.ids import instance_id_for
from events.lifecycle import DELETED, Status
from events.store import EventStore
from hydracore.api import schemas as s
from hydracore.api.access import require_access
from hydracore.api.history import Histories, both_moments_given
from hydracore.api.instance_detail import detail_of
from hydracore.api.listing import Listing
from hydracore.api.operations import Answer, operation
from hydracore.api.paging import cursor_after, next_link, read_cursor
from hydracore.api.runtime import RuntimeReader
from hydracore.api.validation import Incoming, RestOfPath
from hydracore.auth import Principal
from hydracore.clock import NowMs
from projections.queries import ListFilter, Queries

LIST_PATH: Final = "/v1/instances"
LIST_MAX: Final = 1_000

_LINES: Final = msgspec.json.Decoder(list[s.LogLine])

_NOT_FOUND: Final = s.PollByKeyResponse(
    bootstrap_seq=None,
    bootstrap_stage=None,
    error_message=None,
    found=False,
    hostname=None,
    instance_id=None,
    logs=[],
    provisioning_stage=None,
    status=None,
)

Limit = Annotated[int, Meta(ge=1, le=LIST_MAX)]
Cursor = Annotated[str, s.undocumented(max_length=200, extra={"check": "cursor"})]


@dataclass(frozen=True, kw_only=True)
class Instances:
    store: EventStore
    queries: Queries
    listing: Listing
    runtime: RuntimeReader
    histories: Histories
    now_ms: NowMs

    @operation("GET", LIST_PATH, "List instances", answer=s.InstanceList)
    async def list_instances(
        self,
        who: Principal,
        status: Status | None = None,
        include_deleted: bool = False,  # noqa: FBT001, FBT002 - a query parameter, always given by name
        limit: Limit = LIST_MAX,
        cursor: Cursor | None = None,
    ) -> Answer:
        list_filter = ListFilter(
            tenant_id=None if who.role == "platform" else who.tenant_id,
            customer_id=who.user_id if who.role == "customer" else None,
            status=status,
            include_deleted=include_deleted,
            before=read_cursor(cursor) if cursor is not None else None,
            limit=limit,
        )
        page = await self.listing.page(list_filter)
        if page.last is None:
            return Answer(200, page.json)
        following = {"limit": str(limit), "cursor": cursor_after(*page.last)}
        if status is not None:
            following["status"] = status
        if include_deleted:
            following["include_deleted"] = "true"
        return Answer(200, page.json, (next_link(LIST_PATH, following),))

    @operation(
        "GET",
        "/v1/instances/{instance_id}",
        "Get instance",
        answer=s.InstanceDetail,
        errors=(403, 404),
        cross_check=both_moments_given,
    )
    async def get_instance(
        self, who: Principal, instance_id: UUID, at: s.Time | None = None, version: s.Version | None = None
    ) -> s.InstanceDetail:
        if at is not None or version is not None:
            return await self.histories.detail(who, instance_id, at=at, version=version)
        return detail_of(require_access(who, await self.queries.instance(instance_id)))

    @operation(
        "DELETE",
        "/v1/instances/{instance_id}",
        "Delete instance",
        answer=s.DeleteInstanceResponse,
        errors=(403, 404),
    )
    async def delete_instance(self, who: Principal, incoming: Incoming, instance_id: UUID) -> s.DeleteInstanceResponse:
        require_access(who, await self.queries.instance(instance_id))
        command = RequestDeletion(at_ms=self.now_ms(), reason=f"requested by {who.role}")
        outcome = await self.store.execute(instance_id, command, incoming.origin(who.actor))
        gone = outcome.state.status == DELETED
        return s.DeleteInstanceResponse(
            already_deleted=gone,
            instance_id=instance_id,
            message="Instance was already deleted" if gone else "Instance is being deleted",
            status=outcome.state.status,
        )

    @operation(
        "GET",
        "/v1/instances/by-key/{idempotency_key}",
        "Poll by idempotency key",
        answer=s.PollByKeyResponse,
    )
    async def poll_by_key(self, who: Principal, idempotency_key: Annotated[str, RestOfPath()]) -> s.PollByKeyResponse:
        instance_id = await self._by_key(who, idempotency_key)
        report = await self.queries.report(instance_id) if instance_id is not None else None
        if report is None:
            return _NOT_FOUND
        return s.PollByKeyResponse(
            bootstrap_seq=report.bootstrap_seq,
            bootstrap_stage=report.bootstrap_stage,
            error_message=describe(report.error_code) if report.error_code else None,
            found=True,
            hostname=report.hostname,
            instance_id=str(report.id),
            logs=_LINES.decode(report.lines),
            provisioning_stage=report.provisioning_stage,
            status=report.status,
        )

    @operation(
        "GET", "/v1/instances/{instance_id}/logs", "Get instance logs", answer=s.ProvisionLogs, errors=(403, 404)
    )
    async def get_logs(self, who: Principal, instance_id: UUID) -> s.ProvisionLogs:
        report = require_access(who, await self.queries.report(instance_id))
        return s.ProvisionLogs(instance_id=instance_id, logs=_LINES.decode(report.lines), total=report.lines_total)

    @operation(
        "GET", "/v1/instances/{instance_id}/runtime", "Get runtime status", answer=s.RuntimeStatus, errors=(403, 404)
    )
    async def get_runtime(self, who: Principal, instance_id: UUID) -> s.RuntimeStatus:
        report = require_access(who, await self.queries.report(instance_id))
        return await self.runtime.read(report, lines=_LINES.decode(report.lines))

    async def _by_key(self, who: Principal, key: str) -> UUID | None:
        """The caller's own instance with this key; for staff, the newest one that they may see."""
        if who.role == "customer":
            return instance_id_for(tenant_id=who.tenant_id, customer_id=who.user_id, idempotency_key=key)
        tenant_id = None if who.role == "platform" else who.tenant_id
        return await self.queries.newest_by_key(tenant_id=tenant_id, idempotency_key=key)
