"""`/v1/instances/cleanup`: delete all dead instances of a tenant."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

import psycopg
import structlog

from events.commands import RequestDeletion
from events.errors import EventsError
from events.lifecycle import ERROR, FAILED
from events.store import EventStore
from hydracore.api import use_schemas as s
from hydracore.api.access import require_staff
from hydracore.api.operations import operation
from hydracore.api.validation import Incoming
from hydracore.auth import Principal
from hydracore.clock import NowMs
from hydracore.wording import plural
from projections.queries import ListFilter, Queries, listed_keys

#: The most instances of each status per call. The next call continues.
CLEANED_MAX: Final = 5_000

#: How many deletions are appended at the same time: concurrent appends share a flush.
BATCH_MAX: Final = 100

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Cleanup:
    store: EventStore
    queries: Queries
    now_ms: NowMs

    @operation("POST", "/v1/instances/cleanup", "Clean up dead instances", answer=s.CleanupResponse, errors=(403,))
    async def clean_up(self, who: Principal, incoming: Incoming) -> s.CleanupResponse:
        """Counts the deletions that this call has started. Of two concurrent calls, only one counts an instance."""
        require_staff(who)
        cleaned = errors = 0
        for status in (FAILED, ERROR):
            list_filter = ListFilter(tenant_id=who.tenant_id, customer_id=None, status=status, limit=CLEANED_MAX)
            dead = [UUID(key.id) for key in listed_keys(await self.queries.list_text(list_filter))]
            for start in range(0, len(dead), BATCH_MAX):
                batch = dead[start : start + BATCH_MAX]
                outcomes = await asyncio.gather(*(self._delete(each, who, incoming) for each in batch))
                cleaned += outcomes.count("started")
                errors += outcomes.count("error")
        message = f"{plural(cleaned, 'dead instance')} {'is' if cleaned == 1 else 'are'} being deleted"
        if errors:
            message += f"; {errors} could not be deleted"
        return s.CleanupResponse(cleaned=cleaned, errors=errors, message=message)

    async def _delete(
        self, instance_id: UUID, who: Principal, incoming: Incoming
    ) -> Literal["started", "already", "error"]:
        command = RequestDeletion(at_ms=self.now_ms(), reason=f"cleanup by {who.role}")
        try:
            outcome = await self.store.execute(instance_id, command, incoming.origin(who.actor))
        except (EventsError, psycopg.Error) as error:
            _log.warning("cleanup_failed", instance_id=str(instance_id), error=type(error).__name__)
            return "error"
        return "started" if outcome.events else "already"
