"""`instance`: one row per instance, the state of its stream as the API serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any
from uuid import UUID

from events.errors import LogCorrupted
from events.evolve import evolve_all
from events.memory_estimates import state_bytes
from events.record import Append
from events.saga import wake_at_ms
from events.sql import Statements
from events.state import Agent, Attempt, Instance
from events.times import to_datetime
from events.types import AnyEvent
from projections.tables import Row, Table
from projections.versions import OneVersion


def row_of(state: Instance, *, lane: int) -> dict[str, Any]:
    """The row for `state`, by column. Pure: an append, a replay and a rebuild give the same row.

    Raises `LogCorrupted` where one of its times is outside the calendar.
    """
    try:
        return dict(zip(_TABLE.columns, _values_of(state, lane), strict=True))
    except (OverflowError, ValueError, OSError) as error:
        what = f"stream {state.id} has a time that is out of range, at version {state.version} or before"
        raise LogCorrupted(lane, 0, what) from error


def _values_of(state: Instance, lane: int) -> Row:
    """The row's values, in the order of the table's columns."""
    attempt, agent = state.attempt, state.agent
    return (
        lane,
        *_OF_STATE(state),
        *(_NO_ATTEMPT if attempt is None else _OF_ATTEMPT(attempt)),
        *(_NO_AGENT if agent is None else _OF_AGENT(agent)),
        state.health,
        state.error_code,
        to_datetime(state.created_ms),
        to_datetime(state.updated_ms),
        to_datetime(wake_at_ms(state)),
        to_datetime(state.deleted_ms),
    )


#: The attributes that a row takes unchanged, in the order of its columns.
_OF_STATE: Callable[[Instance], Row] = attrgetter(
    *("id", "version", "tenant_id", "customer_id", "idempotency_key", "status", "provisioning_stage"),
    *("region_id", "tier_id", "tier_name", "preset_id", "runtime_type", "workload_type", "capabilities"),
    *("agent_name", "customer_email", "hostname", "vpn_ip"),
)
_OF_ATTEMPT: Callable[[Attempt], Row] = attrgetter(
    "ipv4", "provider", "server_type", "location", "server_id", "number", "action_id"
)
_OF_AGENT: Callable[[Agent], Row] = attrgetter("bootstrap_stage", "bootstrap_seq", "key_hash")
_NO_ATTEMPT: Row = (None, None, None, None, None, 0, None)
_NO_AGENT: Row = (None, None, None)


_TABLE = Table(
    "instance",
    key=("lane", "id"),
    columns=(
        *("lane", "id", "version", "tenant_id", "customer_id", "idempotency_key", "status", "provisioning_stage"),
        *("region_id", "tier_id", "tier_name", "preset_id", "runtime_type", "workload_type", "capabilities"),
        *("agent_name", "customer_email", "hostname", "vpn_ip"),
        *("ip_address", "provider", "server_type", "location", "server_id", "attempt", "pending_action_id"),
        *("bootstrap_stage", "bootstrap_seq", "agent_key_hash"),
        *("health_status", "error_code", "created_at", "updated_at", "wake_at", "deleted_at"),
    ),
    stream="id",
    version="version",
    documents=("capabilities",),
)


class InstanceFold:
    def __init__(self, stream_id: UUID, *, lane: int) -> None:
        self._id = stream_id
        self._lane = lane
        self._state: Instance | None = None
        self._weighed: tuple[Instance | None, int] = (None, 0)

    def feed(self, events: Sequence[AnyEvent]) -> None:
        self._state = evolve_all(self._state, events, stream_id=self._id)

    def rows(self) -> list[Row]:
        assert self._state is not None, "a stream has events"
        return [_values_of(self._state, self._lane)]

    def weight(self) -> int:
        assert self._state is not None, "a stream has events"
        before, weight = self._weighed
        self._weighed = (self._state, state_bytes(self._state, before=before, weight=weight))
        return self._weighed[1]


class InstanceProjection(OneVersion):
    """Writes the newest row. An older row never replaces a newer one."""

    name = "instance"
    version = 1
    tables = (_TABLE,)
    ddl = Statements("projections", "instance.sql")
    statement = Statements("projections", "inline.sql")["instance"]

    def begin(self, stream_id: UUID, *, lane: int) -> InstanceFold:
        return InstanceFold(stream_id, lane=lane)

    def rows(self, append: Append) -> list[dict[str, Any]]:
        return [{**row_of(append.after, lane=append.lane), "command_id": append.origin.command_id}]
