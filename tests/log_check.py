"""Recomputes the whole log from its stored rows: a check that relies on SHA-256 and arithmetic only."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from events.digest import GENESIS, chain_link, command_digest, event_digest
from events.ids import LANES, lane_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_HEADS = "SELECT lane, head, link, nullif(recorded_at, '-infinity') AS recorded_at FROM lane_head ORDER BY lane"
_COMMANDS = """
SELECT lane, command_id, stream_id, tenant_id, name, actor, correlation_id, causation_id, request_hash,
       result::text AS result, first_seq, event_count, digest, link, recorded_at
  FROM command
 ORDER BY lane, first_seq
"""
_EVENTS = """
SELECT lane, seq, stream_id, version, tenant_id, type, schema_version, payload::text AS payload, digest, command_id,
       recorded_at
  FROM event
 ORDER BY lane, seq
"""
_STREAMS = "SELECT lane, stream_id, version FROM stream ORDER BY lane, stream_id"

Row = dict[str, Any]


class CheckedLog(NamedTuple):
    """The contents of the log, after it was found consistent."""

    commands: dict[UUID, Row]
    events: list[Row]
    versions: dict[UUID, int]


async def check_log(connection: AsyncConnection) -> CheckedLog:
    """Read the log and check it. Raises `AssertionError` at the first contradiction."""
    heads, commands, events, streams = [
        await _rows(connection, statement) for statement in (_HEADS, _COMMANDS, _EVENTS, _STREAMS)
    ]
    assert [row["lane"] for row in heads] == list(range(LANES))
    for head in heads:
        _check_lane(
            head,
            [row for row in commands if row["lane"] == head["lane"]],
            [row for row in events if row["lane"] == head["lane"]],
        )
    versions = _versions(events)
    assert {row["stream_id"]: row["version"] for row in streams} == versions
    assert all(row["lane"] == lane_of(row["stream_id"]) for row in streams)
    return CheckedLog({row["command_id"]: row for row in commands}, events, versions)


def _check_lane(head: Row, commands: list[Row], events: list[Row]) -> None:
    link, seq, recorded_at = GENESIS, 0, None
    for command in commands:
        own = events[seq : seq + command["event_count"]]
        assert command["first_seq"] == seq + 1, "commands follow each other without a gap"
        assert [event["seq"] for event in own] == list(range(seq + 1, seq + 1 + command["event_count"]))
        assert all(_agree(event, command) for event in own)
        assert bytes(command["digest"]) == _command_digest(command, own)
        recorded_us = (command["recorded_at"] - _EPOCH) // timedelta(microseconds=1)
        link = chain_link(previous=link, command=command["digest"], first_seq=seq + 1, recorded_us=recorded_us)
        assert bytes(command["link"]) == link, "the chain is whole"
        assert recorded_at is None or recorded_at <= command["recorded_at"], "a lane's time never goes back"
        seq, recorded_at = seq + len(own), command["recorded_at"]
    assert len(events) == seq, "no event without a command"
    assert (head["head"], bytes(head["link"])) == (seq, link)
    assert head["recorded_at"] == recorded_at


def _agree(event: Row, command: Row) -> bool:
    shared = ("lane", "command_id", "stream_id", "tenant_id", "recorded_at")
    digest = event_digest(
        stream_id=event["stream_id"],
        version=event["version"],
        tag=event["type"],
        schema_version=event["schema_version"],
        payload=event["payload"].encode(),
    )
    return bytes(event["digest"]) == digest and all(event[name] == command[name] for name in shared)


def _command_digest(command: Row, events: list[Row]) -> bytes:
    said = ("command_id", "stream_id", "tenant_id", "name", "actor", "correlation_id", "causation_id", "request_hash")
    return command_digest(
        **{name: command[name] for name in said},
        result=None if command["result"] is None else command["result"].encode(),
        event_digests=[bytes(event["digest"]) for event in events],
    )


def _versions(events: list[Row]) -> dict[UUID, int]:
    versions: dict[UUID, int] = defaultdict(int)
    for event in events:
        versions[event["stream_id"]] += 1
        assert event["version"] == versions[event["stream_id"]], "versions of a stream are dense and in the log's order"
    return dict(versions)


async def _rows(connection: AsyncConnection, statement: str) -> list[Row]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(statement.encode())
        return await cursor.fetchall()
