"""One flush: appends a batch of decisions and writes the rows of their inline projections, in a single round trip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg.errors import ObjectNotInPrerequisiteState

from events.codec import encode, tag_of
from events.digest import command_digest, event_digest
from events.exchange import Statement, array_literal, exchange, parse_int
from events.record import Append, InlineProjection
from events.sql import Statements
from events.types import AnyEvent

_SQL = Statements("events", "store.sql")
_APPEND = _SQL["append"]
_CHECK_PROJECTIONS = _SQL["check_projections"]
_LIVE_VERSIONS = Statement(_SQL["live_versions"], ())
_encode = msgspec.json.Encoder().encode

#: The longest transaction of a flush, without its commit, on servers that can limit it (PostgreSQL 17 and up). A flush whose message
#: arrives only in part, because its process is frozen or its machine is gone, would otherwise keep its lanes locked until the network
#: notices.
TRANSACTION_S_MAX = 15.0

#: The outcomes of appends whose events are in the log: written by this flush, or by an earlier try whose answer was lost.
IN_LOG = frozenset({"appended", "landed"})


class AppendResult(msgspec.Struct, frozen=True, kw_only=True):
    """The log's answer to one append. `outcome`: `appended`, `landed`, `duplicate` or `conflict`. `digest`: that of its last event."""

    outcome: str
    digest: bytes
    version: int
    seq_before: int | None
    request_hash: bytes | None
    result: bytes | None


async def flush(
    connection: AsyncConnection, appends: Sequence[Append], inline: Sequence[InlineProjection], *, lock_s_max: float
) -> list[AppendResult]:
    """Write the batch in one implicit transaction. Returns one result per append, in order.

    The connection must be in autocommit mode, and several flushes may be in flight on it. Raises psycopg's errors, after which nothing
    of the batch was written; only if the connection broke, all of it may have been. The command ids make a retry safe.

    - `LockNotAvailable`: a lock was not released within `lock_s_max`.
    - `ObjectNotInPrerequisiteState`: a read table was swapped for another version. `inline` was told the live versions, so the batch
      can be flushed again.
    """
    assert connection.autocommit, "the exchange is the transaction"
    parameters, digests = _parameters(appends)
    limits = (b"%d" % (lock_s_max * 1000), b"%d" % (TRANSACTION_S_MAX * 1000))
    # The check comes second, because the append locks the lanes: a swap of read tables holds all lanes, so afterwards its outcome is
    # visible here, and no other swap can begin until the commit.
    statements = [Statement(_APPEND, (*parameters, *limits)), Statement(_CHECK_PROJECTIONS, _versions(inline))]
    for projection in inline:
        rows = [row for append in appends for row in projection.rows(append)]
        if rows:
            statements.append(Statement(projection.statement, (_encode(rows),)))
    try:
        answers, *_ = await exchange(connection, statements, pipelined=True)
    except ObjectNotInPrerequisiteState:
        [rows] = await exchange(connection, [_LIVE_VERSIONS], pipelined=True)
        live = {name: parse_int(version) for name, version in rows}
        for projection in inline:
            # One without a row is named by the next check.
            if (version := live.get(projection.name.encode())) is not None:
                projection.use_version(version)
        raise
    assert len(answers) == len(appends), "one result per command"
    return [_append_result(answer, digest) for answer, digest in zip(answers, digests, strict=True)]


def _append_result(answer: tuple[bytes | None, ...], digest: bytes) -> AppendResult:
    outcome, version, seq_before, request_hash, result = answer
    assert outcome is not None
    assert version is not None
    return AppendResult(
        outcome=outcome.decode(),
        digest=digest,
        version=int(version),
        seq_before=None if seq_before is None else int(seq_before),
        request_hash=None if request_hash is None else bytes.fromhex(request_hash.decode()),
        result=result,
    )


def _versions(inline: Sequence[InlineProjection]) -> tuple[bytes, bytes]:
    """The arrays of `check_projections`."""
    return array_literal(projection.name for projection in inline), array_literal(
        str(projection.version) for projection in inline
    )


def _parameters(appends: Sequence[Append]) -> tuple[tuple[bytes, bytes, bytes], list[bytes]]:
    """The parameters of `append` before its limits, and the digest of each append's last event."""
    commands: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    last_digests: list[bytes] = []
    for ordinal, append in enumerate(appends, start=1):
        digests: list[bytes] = []
        for n, event in enumerate(append.events):
            row, digest = _event(append, event, n)
            events.append({"ordinal": ordinal, "n": n, **row})
            digests.append(digest)
        commands.append(_command(append, digests))
        last_digests.append(digests[-1])
    lanes = array_literal(str(append.lane) for append in appends)
    return (lanes, _encode(commands), _encode(events)), last_digests


def _event(append: Append, event: AnyEvent, n: int) -> tuple[dict[str, Any], bytes]:
    tag, payload, version = tag_of(event), encode(event), append.expected_version + n + 1
    digest = event_digest(
        stream_id=append.stream_id,
        version=version,
        tag=tag,
        schema_version=event.schema_version,
        payload=payload,
    )
    row = {
        "version": version,
        "type": tag,
        "schema_version": event.schema_version,
        # Raw: PostgreSQL takes the value out of the array byte for byte, and the digest covers these bytes.
        "payload": msgspec.Raw(payload),
        "digest": digest.hex(),
    }
    return row, digest


def _command(append: Append, event_digests: list[bytes]) -> dict[str, Any]:
    origin, tenant_id = append.origin, append.after.tenant_id
    digest = command_digest(
        command_id=origin.command_id,
        stream_id=append.stream_id,
        tenant_id=tenant_id,
        name=append.name,
        actor=origin.actor,
        correlation_id=origin.correlation_id,
        causation_id=origin.causation_id,
        request_hash=origin.request_hash,
        result=origin.result,
        event_digests=event_digests,
    )
    return {
        "lane": append.lane,
        "command_id": origin.command_id,
        "stream_id": append.stream_id,
        "tenant_id": tenant_id,
        "name": append.name,
        "actor": origin.actor,
        "correlation_id": origin.correlation_id,
        "causation_id": origin.causation_id,
        "request_hash": None if origin.request_hash is None else origin.request_hash.hex(),
        "result": None if origin.result is None else msgspec.Raw(origin.result),
        "expected_version": append.expected_version,
        "expected_digest": None if append.before_digest is None else append.before_digest.hex(),
        "event_count": len(append.events),
        "digest": digest.hex(),
    }
