"""`audit show`, `audit state` and `audit diff`: what happened, what the state was then, and which events changed it."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

import click

from events.ids import LANES, SEQ_MAX, VERSION_MAX
from hydracore.cli.printing import Text, Time, json_option
from hydracore.cli.running import load, on_database

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

    from hydracore.audit.historical_state import HistoricalState
    from hydracore.audit.history import Entry, EventFilter, Position

#: A version, or a time.
Moment = int | datetime


class _Version(click.IntRange):
    """The versions that a stream can have, from `least` on. Version 0 is before its first event."""

    name = "version"

    def __init__(self, least: int) -> None:
        super().__init__(least, VERSION_MAX)


class _Moment(click.ParamType[Moment]):
    name = "version|time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Moment:
        if isinstance(value, int | datetime):
            return value
        # Digits alone are a version. A year alone is not accepted as a time.
        if value.isdecimal():
            return _Version(0).convert(value, param, ctx)
        from hydracore.audit.timestamps import parse_time

        try:
            return parse_time(value)
        except ValueError as error:
            self.fail(f"{value!r} is neither a version, such as 5, nor a time: {error}", param, ctx)


class _ResumePoint(NamedTuple):
    """The position to continue after. `heads`: the last numbers to read, by lane; None: not part of the text."""

    position: Position
    heads: list[int] | None


class _ResumePointType(click.ParamType[_ResumePoint]):
    name = "lane:number[@heads]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _ResumePoint:
        from hydracore.audit.heads_token import decode_heads
        from hydracore.audit.history import Position

        found = re.fullmatch(r"(\d{1,2}):(\d{1,19})(?:@([\w-]+))?", value, re.ASCII)
        if found is None or int(found[1]) >= LANES or int(found[2]) > SEQ_MAX:
            self.fail(f"{value!r} is not a position; copy one from the output, such as 6:12", param, ctx)
        try:
            heads = None if found[3] is None else decode_heads(found[3])
        except ValueError:
            self.fail(f"{value!r} is incomplete; copy all of it", param, ctx)
        return _ResumePoint(Position(int(found[1]), int(found[2])), heads)


class _EventType(click.ParamType[str]):
    name = "event"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from events.upcast import CURRENT_VERSIONS, TAG_BY_NAME

        if value not in TAG_BY_NAME:
            self.fail(
                f"{value!r} is not a type of event; the types are {', '.join(sorted(CURRENT_VERSIONS))}", param, ctx
            )
        return TAG_BY_NAME[value]


_instance: Final = click.argument("instance", type=click.UUID)


@click.command()
@click.argument("instance", type=click.UUID, required=False)
@click.option("--tenant", type=Text(), help="Show all events of this tenant, ordered by time, lane and number.")
@click.option("--since", type=Time(), help="Only events recorded at or after this time.")
@click.option("--until", type=Time(ends=True), help="Only events recorded at or before this time.")
@click.option("--type", "types", type=_EventType(), multiple=True, help="Only events of this type. Repeatable.")
@click.option("--actor", type=Text(), help="Only events by this actor (admin:ops), or by all actors of a kind (admin).")
@click.option("--after", type=_ResumePointType(), help="Continue after this position, as printed by --limit.")
@click.option("--limit", type=click.IntRange(1), help="Stop after this many events and print how to continue.")
@json_option
def show(
    *,
    instance: UUID | None,
    tenant: str | None,
    since: datetime | None,
    until: datetime | None,
    types: tuple[str, ...],
    actor: str | None,
    after: _ResumePoint | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show the events of an instance or a tenant.

    For each event: when, by whom and by which command it was recorded, and what it changed. Events are printed as they
    are read.

    TIME is RFC 3339, in UTC unless it has an offset. With --json, each event is one JSON document on one line.
    """
    from hydracore.audit.heads_token import encode_heads
    from hydracore.audit.history import EventFilter, current_heads
    from hydracore.cli.audit_history_view import print_events

    if (instance is None) == (tenant is None):
        raise click.UsageError("Give either INSTANCE or --tenant.")
    if since is not None and until is not None and since > until:
        raise click.UsageError("--since must not be after --until.")
    event_filter = EventFilter(since=since, until=until, types=types, actor=actor)

    async def work(pool: AsyncConnectionPool) -> None:
        heads = await current_heads(pool) if after is None or after.heads is None else after.heads
        heads_token = None if tenant is None else encode_heads(heads)
        async with aclosing(_entries(pool, instance, tenant, event_filter, after=after, heads=heads)) as entries:
            await print_events(entries, limit=limit, heads_token=heads_token, as_json=as_json)

    on_database(load(), work)


@click.command()
@_instance
@click.option("--at", type=Time(), help="The state at this time, by the log's clock.")
@click.option("--version", type=_Version(1), help="The state after this version's event.")
@json_option
def state(*, instance: UUID, at: datetime | None, version: int | None, as_json: bool) -> None:
    """Show all fields of an instance, now or in the past.

    Without --at and --version, shows the present state.
    """
    from hydracore.audit.historical_state import state_at
    from hydracore.audit.history_rendering import hide_sealed, render_state
    from hydracore.cli.audit_history_view import print_state

    if at is not None and version is not None:
        raise click.UsageError("Give either --at or --version.")

    async def work(pool: AsyncConnectionPool) -> None:
        historical = await state_at(pool, instance, version=version, at=at)
        print_state(await render_state(historical, hide_sealed), as_json=as_json)

    on_database(load(), work)


@click.command()
@_instance
@click.option("--from", "start", type=_Moment(), required=True, help="A version (0: before the first event) or a time.")
@click.option("--to", "end", type=_Moment(), help="A version or a time; default: now.")
@json_option
def diff(*, instance: UUID, start: Moment, end: Moment | None, as_json: bool) -> None:
    """Show what changed in an instance between two moments.

    For each changed field: both values, and the events that changed it.
    """
    from hydracore.audit.difference import difference
    from hydracore.audit.history_rendering import hide_sealed, render_difference
    from hydracore.cli.audit_history_view import print_difference

    async def work(pool: AsyncConnectionPool) -> None:
        last = await _state_at_moment(pool, instance, end)
        first = await _state_at_start(pool, instance, start)
        if first is not None and first.state.version > last.state.version:
            raise click.UsageError("--from must not be after --to.")
        found = await difference(pool, instance, start=first, end=last)
        print_difference(await render_difference(found, hide_sealed), as_json=as_json)

    on_database(load(), work)


async def _state_at_start(pool: AsyncConnectionPool, instance: UUID, moment: Moment) -> HistoricalState | None:
    """The instance at a moment; None at a moment before its first event. Raises `NotInLog`."""
    from hydracore.audit.errors import NotInLog

    if moment == 0:
        return None
    try:
        return await _state_at_moment(pool, instance, moment)
    except NotInLog:
        if isinstance(moment, datetime):
            return None
        raise


async def _state_at_moment(pool: AsyncConnectionPool, instance: UUID, moment: Moment | None) -> HistoricalState:
    from hydracore.audit.historical_state import state_at

    if isinstance(moment, datetime):
        return await state_at(pool, instance, at=moment)
    return await state_at(pool, instance, version=moment)


async def _entries(
    pool: AsyncConnectionPool,
    instance: UUID | None,
    tenant: str | None,
    event_filter: EventFilter,
    *,
    after: _ResumePoint | None,
    heads: list[int],
) -> AsyncGenerator[Entry]:
    """The events that were asked for. Raises `NotInLog`."""
    from hydracore.audit.historical_state import state_at
    from hydracore.audit.history import instance_entries, locate, tenant_entries

    located = None if after is None else await locate(pool, after.position)
    if located is not None and (located.tenant_id if instance is None else located.stream_id) != (instance or tenant):
        raise click.UsageError(f"--after {located.position} is an event of another instance or tenant.")
    if instance is None:
        assert tenant is not None
        entries = tenant_entries(pool, tenant, event_filter, heads=heads, after=located)
    else:
        before = None if located is None else (await state_at(pool, instance, version=located.version)).state
        entries = instance_entries(pool, instance, event_filter, after=before)
    async with aclosing(entries):
        async for entry in entries:
            yield entry
