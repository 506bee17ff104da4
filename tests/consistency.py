"""Checks a database for consistency: no gap in the log, valid hash chains, and read tables that equal the fold of the log."""

from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from tests.log_check import Row, check_log
from tests.replaying import Replay

_TABLES = {
    "instance": "SELECT * FROM instance",
    "provision_log": "SELECT lane, instance_id AS id, seq AS version, level, stage, message, created_at FROM provision_log",
    "reservation": "SELECT kind, value, instance_id AS id, version, reserved_at, released_at FROM reservation",
}


async def check_consistency(database_url: str) -> int:
    """Check a whole database, which must not be written to meanwhile. Returns the number of events."""
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        log = await check_log(connection)
        replay = Replay()
        replay.feed(log.events)
        for table in _TABLES:
            await _check_table(connection, table, getattr(replay, table))
    return len(log.events)


async def _check_table(connection: AsyncConnection, table: str, wanted: list[Row]) -> None:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_TABLES[table].encode())
        found = await cursor.fetchall()
    shared = set(wanted[0]) & set(found[0]) if wanted and found else set()
    assert len(found) == len(wanted), f"{table} has {len(found)} rows, and the log gives {len(wanted)}"
    assert _comparable(found, shared) == _comparable(wanted, shared), f"{table} is not what the log gives"


def _comparable(rows: list[Row], columns: set[str]) -> list[tuple[str, ...]]:
    """The rows in an order, and with times in a form, that do not depend on where they come from."""
    return sorted(tuple(f"{name}={_plain(row[name])}" for name in sorted(columns)) for row in rows)


def _plain(value: object) -> object:
    return value.timestamp() if isinstance(value, datetime) else value
