"""Whether a database tells one story: no hole in the log, every link of its chains, and read tables that the log gives."""

from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from events.digest import GENESIS, chain_link, command_digest, event_digest
from events.record import Recorded
from events.store import read_heads, read_lane
from projections.replay import Replay

Row = dict[str, Any]

_COMMANDS = """
SELECT command_id, stream_id, tenant_id, name, actor, correlation_id, causation_id, request_hash, result::text, first_seq,
       event_count, digest, link, (extract(epoch FROM recorded_at) * 1000000)::bigint AS recorded_us
  FROM command WHERE lane = %s ORDER BY first_seq
"""
_TABLES = {
    "instance": "SELECT * FROM instance",
    "provision_log": "SELECT lane, instance_id AS id, seq AS version, level, stage, message, created_at FROM provision_log",
    "reservation": "SELECT kind, value, instance_id AS id, version, reserved_at, released_at FROM reservation",
}


async def audit(database_url: str) -> int:
    """Check all of it; how many events there are."""
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        replay, count = Replay(), 0
        for lane, head in (await read_heads(connection)).items():
            # Raises where a number is missing.
            events = await read_lane(connection, lane=lane, after=0, limit=head + 1)
            assert len(events) == head, f"lane {lane} has {len(events)} events and says {head}"
            await _audit_chain(connection, lane, events)
            replay.feed(events)
            count += head
        for table in _TABLES:
            await _audit_table(connection, table, getattr(replay, table))
    return count


async def _audit_chain(connection: AsyncConnection, lane: int, events: list[Recorded]) -> None:
    digests = [bytes(event.digest) for event in events]
    for event in events:
        found = event_digest(
            stream_id=event.stream_id,
            version=event.version,
            tag=event.type,
            schema_version=event.schema_version,
            payload=event.payload.encode(),
        )
        assert found == digests[event.seq - 1], f"event {event.seq} of lane {lane} was edited"
    link, next_seq = GENESIS, 1
    for row in await _rows(connection, _COMMANDS, lane):
        seq, count = row.pop("first_seq"), row.pop("event_count")
        known_digest, known_link, recorded_us = row.pop("digest"), row.pop("link"), row.pop("recorded_us")
        assert seq == next_seq, f"lane {lane} has a command at {seq} where {next_seq} must be"
        result = row.pop("result")
        digest = command_digest(
            **row,
            result=None if result is None else result.encode(),
            event_digests=digests[seq - 1 : seq - 1 + count],
        )
        link = chain_link(previous=link, command=digest, first_seq=seq, recorded_us=recorded_us)
        assert (digest, link) == (known_digest, known_link), f"command at {seq} of lane {lane} was edited"
        next_seq += count
    assert next_seq == len(events) + 1, f"lane {lane} has events without a command"
    head = await _rows(connection, "SELECT link FROM lane_head WHERE lane = %s", lane)
    assert head[0]["link"] == link, f"the head of lane {lane} has another link"


async def _audit_table(connection: AsyncConnection, table: str, wanted: list[Row]) -> None:
    found = await _rows(connection, _TABLES[table])
    shared = set(wanted[0]) & set(found[0]) if wanted and found else set()
    assert len(found) == len(wanted), f"{table} has {len(found)} rows, and the log gives {len(wanted)}"
    assert _comparable(found, shared) == _comparable(wanted, shared), f"{table} is not what the log gives"


def _comparable(rows: list[Row], columns: set[str]) -> list[tuple[str, ...]]:
    """The rows in an order, and with times in a form, that do not depend on where they come from."""
    return sorted(tuple(f"{name}={_plain(row[name])}" for name in sorted(columns)) for row in rows)


def _plain(value: object) -> object:
    return value.timestamp() if isinstance(value, datetime) else value


async def _rows(connection: AsyncConnection, statement: str, *parameters: object) -> list[Row]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(statement, parameters)  # type: ignore[arg-type]
        return await cursor.fetchall()
