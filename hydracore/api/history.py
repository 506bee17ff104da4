"""`/v1/instances/{id}/events`, and `/v1/instances/{id}` at an earlier moment: an instance's log.

The owner sees personal data, and secrets masked as elsewhere. Staff see only that a value was there or changed; with
the owner's consent they see what the owner sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, Final
from uuid import UUID

import msgspec
from msgspec import Meta
from msgspec.structs import replace
from psycopg_pool import AsyncConnectionPool

from events.state import Instance
from events.upcast import CURRENT_VERSIONS, TAG_BY_NAME
from hydracore.api import schemas as s
from hydracore.api.access import is_owner
from hydracore.api.changes import Changes
from hydracore.api.errors import NotFound
from hydracore.api.instance_detail import detail_of, row_at
from hydracore.api.operations import Answer, operation
from hydracore.api.paging import next_link
from hydracore.api.validation import RequestValues
from hydracore.api.vault import Vault
from hydracore.audit.errors import NotInLog
from hydracore.audit.historical_state import state_at
from hydracore.audit.history import EventFilter, instance_entries
from hydracore.audit.history_rendering import RenderSealed, hide_sealed, render_event, render_state
from hydracore.audit.timestamps import parse_end_time, parse_time
from hydracore.auth import Principal
from hydracore.problems import Problem

PATH: Final = "/v1/instances/{instance_id}/events"
LIMIT_MAX: Final = 500

#: A page that reaches this many bytes ends before its limit. One change of a configuration may have a million bytes.
PAGE_BYTES: Final = 4 * 1024 * 1024

Limit = Annotated[int, Meta(ge=1, le=LIMIT_MAX)]
#: Names of event types, separated by commas.
EventTypes = Annotated[str, Meta(extra={"check": "event_types"})]
Actor = Annotated[str, Meta(min_length=1, max_length=300)]

_ENCODER: Final = msgspec.json.Encoder()


@dataclass(frozen=True, kw_only=True)
class Histories:
    """Reads the past of instances from the log."""

    pool: AsyncConnectionPool
    changes: Changes
    vault: Vault

    async def detail(
        self, who: Principal, instance_id: UUID, *, at: str | None, version: int | None
    ) -> s.InstanceDetail:
        """The instance at a time or at a version, of which one must be given. Raises `NotFound` and `Forbidden`."""
        render_sealed = self._renderer_for(who, await self.changes.load(who, instance_id))
        with _not_found_translated():
            past = await state_at(self.pool, instance_id, version=version, at=_time(at))
        then = await render_state(past, render_sealed)
        detail = detail_of(row_at(past.state))
        return replace(detail, version=then.version, recorded_at=then.recorded_at, state=then.state)

    @operation("GET", PATH, "List instance events", answer=s.InstanceEvents, errors=(403, 404))
    async def list_events(
        self,
        *,
        who: Principal,
        instance_id: UUID,
        since: s.Time | None = None,
        until: s.Time | None = None,
        type: EventTypes | None = None,  # noqa: A002 - what it is called in the query
        actor: Actor | None = None,
        limit: Limit = 100,
        cursor: s.Version | None = None,
    ) -> Answer:
        """Oldest first. The cursor is the version of the last event of the page before."""
        render_sealed = self._renderer_for(who, await self.changes.load(who, instance_id))
        types = () if type is None else tuple(TAG_BY_NAME[name] for name in type.split(","))
        event_filter = EventFilter(
            since=_time(since), until=None if until is None else parse_end_time(until), types=types, actor=actor
        )
        with _not_found_translated():
            after = None if cursor is None else (await state_at(self.pool, instance_id, version=cursor)).state
            shown, last = await self._page(instance_id, event_filter, render_sealed, after=after, limit=limit)
        body = b'{"events":[' + b",".join(shown) + b"]}"
        if last is None:
            return Answer(200, body)
        given = {"since": since, "until": until, "type": type, "actor": actor}
        following = {name: value for name, value in given.items() if value is not None}
        following |= {"limit": str(limit), "cursor": str(last)}
        return Answer(200, body, (next_link(PATH.format(instance_id=instance_id), following),))

    async def _page(
        self,
        instance_id: UUID,
        event_filter: EventFilter,
        render_sealed: RenderSealed,
        *,
        after: Instance | None,
        limit: int,
    ) -> tuple[list[bytes], int | None]:
        """The events of a page, encoded, and the version of the last one if others follow, otherwise None."""
        shown: list[bytes] = []
        size_bytes = last = 0
        async with aclosing(instance_entries(self.pool, instance_id, event_filter, after=after)) as entries:
            async for entry in entries:
                # An event beyond the limit shows that others follow.
                if len(shown) == limit or size_bytes >= PAGE_BYTES:
                    return shown, last
                shown.append(_ENCODER.encode(await render_event(entry, render_sealed)))
                size_bytes += len(shown[-1])
                last = entry.record.version
                # Five hundred events take a while, so other requests get a turn in between.
                await asyncio.sleep(0)
        return shown, None

    def _renderer_for(self, who: Principal, now: Instance) -> RenderSealed:
        """How sealed values are shown to the caller. The present consent decides, whatever it was at that moment."""
        if is_owner(who, now) or now.consent_debug_access:
            return partial(self.vault.show, now)
        return hide_sealed


@contextmanager
def _not_found_translated() -> Generator[None]:
    try:
        yield
    except NotInLog as error:
        raise NotFound(str(error)) from error


def _time(text: str | None) -> datetime | None:
    return None if text is None else parse_time(text)


def both_moments_given(given: RequestValues) -> Iterator[Problem]:
    """The problem of a request that gives both a time and a version."""
    if given["query"].keys() >= {"at", "version"}:
        yield Problem(("query", "version"), "Value error, give either at or version", "value_error")


def time_error(text: str) -> str | None:
    """What is wrong with `text` as a time, or None."""
    try:
        parse_time(text)
    except ValueError as error:
        return f"{error} (the + of an offset is %2B in a URL)"
    return None


def event_types_error(text: str) -> str | None:
    """What is wrong with `text` as event types, or None."""
    if all(name in TAG_BY_NAME for name in text.split(",")):
        return None
    return f"unknown type of event; known: {', '.join(sorted(CURRENT_VERSIONS))}"
