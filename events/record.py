"""What goes to the log and what comes back from it."""

from __future__ import annotations

from typing import Any, Protocol
from uuid import UUID

import msgspec

from events.state import Instance
from events.types import AnyEvent


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Who gave a command and why.

    `actor`: `customer:ID`, `admin:ID`, `platform:ID`, `api_key:ID`, `api_key:ID as customer:ID`, `agent:INSTANCE`,
    `operator:NAME` (of a command line), `worker`, `sweeper`, `migrate`.
    `correlation_id` is the same for everything that one request set off; `causation_id` is the command before this one.
    `request_hash` and `result` (JSON) make an HTTP request idempotent: a repeat is compared with the one and answered
    with the other. `request_hashes_former`: what the same request's hash was by former master keys.
    """

    actor: str
    command_id: UUID
    correlation_id: UUID
    causation_id: UUID | None = None
    request_hash: bytes | None = None
    request_hashes_former: tuple[bytes, ...] = ()
    result: bytes | None = None

    def is_same_request(self, request_hash: bytes | None) -> bool:
        """Whether this is the request that was recorded with `request_hash`."""
        return request_hash in (self.request_hash, *self.request_hashes_former)


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """One decision on its way to the log: the states before and after it, and the events between.

    `before_digest`: the digest of the last event behind `before`, where it is known: the log then takes the decision
    only on top of that very event.
    """

    stream_id: UUID
    lane: int
    name: str
    before: Instance | None
    after: Instance
    events: tuple[AnyEvent, ...]
    origin: Origin
    before_digest: bytes | None = None

    @property
    def expected_version(self) -> int:
        return 0 if self.before is None else self.before.version


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a command.

    `duplicate`: the log already held one with its id. Either it is this very one, and the answer to an earlier try was
    lost: then `events` are its events, and much may have happened since. Or it is another: then there are no events, and
    `result` is what that one answered.
    """

    state: Instance
    events: tuple[AnyEvent, ...]
    duplicate: bool = False
    result: bytes | None = None


class InlineProjection(Protocol):
    """A read table that is written in the append's own transaction.

    `statement` takes one parameter, `$1`: the JSON of `rows`. Each row carries `lane`, `id`, `version` and `command_id` of
    the event it was folded from; the statement joins on them, so that a row lands if and only if its event is in the
    log, whatever became of the other commands of the batch.

    The database says which `version` of the table is live. An append with rows of another version is refused; then
    `serve` is told the live one, and the append is made again.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    def serve(self, version: int) -> None:
        """Write rows of `version` from now on, where the code has it."""
        ...

    @property
    def statement(self) -> bytes: ...

    def rows(self, append: Append) -> list[dict[str, Any]]:
        """The rows that this append changes."""
        ...
