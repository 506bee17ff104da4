"""One flush: a batch of decisions, and the read-table rows that ride with them, in a single round trip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg.errors import ObjectNotInPrerequisiteState

from events.codec import encode, tag_of
from events.digest import command_digest, event_digest
from events.record import Append, InlineProjection
from events.sql import Statements
from events.types import AnyEvent

_SQL = Statements("events", "store.sql")
_APPEND = _SQL["append"]
_CHECK_PROJECTIONS = _SQL["check_projections"]
_LIVE_VERSIONS = _SQL["live_versions"]
_json = msgspec.json.Encoder()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The log's answer to one decision: `appended`, `duplicate` or `conflict`.

    `digest` is that of the decision's last event.
    """

    outcome: str
    digest: bytes
    version: int
    seq_before: int | None
    request_hash: bytes | None
    result: bytes | None


async def flush(
    connection: AsyncConnection, appends: Sequence[Append], inline: Sequence[InlineProjection]
) -> list[Verdict]:
    """Write the batch in one implicit transaction (a pipeline between two syncs) and return a verdict each, in order.

    The connection must be in autocommit mode. Raises psycopg's errors; then nothing of the batch was written, or, when
    the connection broke, perhaps all of it: the command ids make trying again safe. `ObjectNotInPrerequisiteState`
    means that a read table has been swapped for one of another version; `inline` has learned of it.
    """
    assert connection.autocommit, "the pipeline is the transaction"
    parameters, digests = _parameters(appends)
    try:
        answers = await _pipelined(connection, parameters, appends, inline)
    except ObjectNotInPrerequisiteState:
        live = dict(await (await connection.execute(_LIVE_VERSIONS)).fetchall())
        for projection in inline:
            projection.serve(live[projection.name])
        raise
    assert len(answers) == len(appends), "one verdict a command"
    return [_verdict(answer, digest) for answer, digest in zip(answers, digests, strict=True)]


async def _pipelined(
    connection: AsyncConnection,
    parameters: tuple[str, str],
    appends: Sequence[Append],
    inline: Sequence[InlineProjection],
) -> list[tuple[Any, ...]]:
    versions = ([p.name for p in inline], [p.version for p in inline])
    rows = [(p.statement, [row for append in appends for row in p.rows(append)]) for p in inline]
    async with connection.pipeline():
        cursor = await connection.execute(_APPEND, parameters, prepare=True)
        await connection.execute(_CHECK_PROJECTIONS, versions, prepare=True)
        for statement, changed in rows:
            if changed:
                await connection.execute(statement, (_json.encode(changed).decode(),), prepare=True)
    return await cursor.fetchall()


def _verdict(answer: tuple[Any, ...], digest: bytes) -> Verdict:
    _, outcome, version, seq_before, request_hash, result = answer
    return Verdict(
        outcome=outcome,
        digest=digest,
        version=version,
        seq_before=seq_before,
        request_hash=None if request_hash is None else bytes(request_hash),
        result=None if result is None else result.encode(),
    )


def _parameters(appends: Sequence[Append]) -> tuple[tuple[str, str], list[bytes]]:
    """The two JSON arrays of `append_commands`, one object a command, one an event; and each command's last digest."""
    commands: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    last_digests: list[bytes] = []
    for ordinal, append in enumerate(appends):
        digests: list[bytes] = []
        for n, event in enumerate(append.events):
            row, digest = _event(append, event, n)
            events.append({"ordinal": ordinal, **row})
            digests.append(digest)
        commands.append({"ordinal": ordinal, **_command(append, digests)})
        last_digests.append(digests[-1])
    return (_json.encode(commands).decode(), _json.encode(events).decode()), last_digests


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
        "n": n,
        "lane": append.lane,
        "stream_id": append.stream_id,
        "version": version,
        "tenant_id": append.after.tenant_id,
        "type": tag,
        "schema_version": event.schema_version,
        "payload": payload.decode(),
        "digest": digest.hex(),
        "command_id": append.origin.command_id,
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
        "result": None if origin.result is None else origin.result.decode(),
        "expected_version": append.expected_version,
        "expected_digest": None if append.before_digest is None else append.before_digest.hex(),
        "event_count": len(append.events),
        "digest": digest.hex(),
    }
