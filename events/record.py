"""The types at the log's interface: the origin of a command, an append, its outcome, and inline projections."""

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
    `request_hash` and `result` (JSON) make an HTTP request idempotent: a repeated request must have the same hash, and gets the
    stored result. `request_hashes_former`: the hashes of the same request with former master keys.
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
    """One decision to be appended: its events, and the states before and after them.

    `before_digest`: the digest of the last event of `before`. The log takes the decision only if it has that event at that version.
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

    `duplicate`: the log already had a command with this id. Either it is this command, and the answer to an earlier try was lost:
    then `events` are its events, and `state` may be much newer. Or it was given by an earlier request: then `events` is empty, and
    `result` is the stored result of that request.
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
    `use_version` is called with the live one, and the append is repeated.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    def use_version(self, version: int) -> None:
        """Write rows of `version` from now on, if this code knows that version."""
        ...

    @property
    def statement(self) -> bytes: ...

    def rows(self, append: Append) -> list[dict[str, Any]]:
        """The rows that this append changes."""
        ...
