"""Recomputes the digests of stored rows with the functions of `events.digest` that made them."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from events.digest import command_digest, event_digest


class EventRow(Protocol):
    """The columns that an event's digest covers, and the stored digest."""

    @property
    def stream_id(self) -> UUID: ...
    @property
    def version(self) -> int: ...
    @property
    def type(self) -> str: ...
    @property
    def schema_version(self) -> int: ...
    @property
    def payload(self) -> str: ...
    @property
    def digest(self) -> bytes: ...


class CommandRow(Protocol):
    """The columns that a command's digest covers, besides its events' digests."""

    @property
    def command_id(self) -> UUID: ...
    @property
    def stream_id(self) -> UUID: ...
    @property
    def tenant_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def actor(self) -> str: ...
    @property
    def correlation_id(self) -> UUID: ...
    @property
    def causation_id(self) -> UUID | None: ...
    @property
    def request_hash(self) -> bytes | None: ...
    @property
    def result(self) -> str | None: ...


def has_valid_digest(event: EventRow) -> bool:
    """Whether the event's stored digest is right."""
    try:
        digest = event_digest(
            stream_id=event.stream_id,
            version=event.version,
            tag=event.type,
            schema_version=event.schema_version,
            payload=event.payload.encode(),
        )
    except OverflowError:
        return False  # The log never writes a negative version.
    return digest == event.digest


def command_row_digest(command: CommandRow, event_digests: list[bytes]) -> bytes:
    """The digest of a command, recomputed from its row and its events' digests."""
    return command_digest(
        command_id=command.command_id,
        stream_id=command.stream_id,
        tenant_id=command.tenant_id,
        name=command.name,
        actor=command.actor,
        correlation_id=command.correlation_id,
        causation_id=command.causation_id,
        request_hash=command.request_hash,
        result=None if command.result is None else command.result.encode(),
        event_digests=event_digests,
    )
