"""What PostgreSQL keeps of customers' keys besides their rows: nothing that outlives the keys for good."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
from psycopg_pool import AsyncConnectionPool

from events import rewrapping
from events.keys import Keyring
from events.master_keys import MasterKeys
from hydracore.db import migrate
from tests.keyrings import MASTER_KEY, OTHER_MASTER_KEY, destroy_keys, keyring, pool

__all__ = ["keyring", "pool"]

#: More rows than fit on a page of the table.
_CUSTOMERS = 150

_KEYS = "SELECT wrapped_key FROM customer_key"
_SAMPLED = "SELECT concat(histogram_bounds, most_common_vals) FROM pg_stats WHERE attname = 'wrapped_key'"
_FILE = "SELECT current_setting('data_directory'), pg_relation_filepath('customer_key')"


async def test_the_statistics_of_the_key_table_contain_no_key(
    keyring: Keyring, owner_conn: psycopg.AsyncConnection, database_url: str
) -> None:
    keys = await _made(keyring, owner_conn)
    # As it was before the migration that keeps keys out of the statistics.
    await owner_conn.execute("DELETE FROM migration WHERE name = '0024_keys_in_no_statistics'")
    await owner_conn.execute("ALTER TABLE customer_key ALTER COLUMN wrapped_key SET STATISTICS -1")
    await owner_conn.execute("ANALYZE customer_key")
    (sampled,) = await (await owner_conn.execute(_SAMPLED)).fetchall()
    assert any(key.hex() in sampled[0] for key in keys)

    migrate(database_url)
    await owner_conn.execute("ANALYZE customer_key")

    assert await (await owner_conn.execute(_SAMPLED)).fetchall() == []


async def test_vacuum_full_removes_destroyed_and_rewrapped_keys_from_the_file_of_the_table(
    pool: AsyncConnectionPool, keyring: Keyring, owner_conn: psycopg.AsyncConnection
) -> None:
    before = await _made(keyring, owner_conn)
    await rewrapping.rewrap(pool, MasterKeys(OTHER_MASTER_KEY, (MASTER_KEY,)))
    destroyed = await _read(owner_conn)
    await destroy_keys(owner_conn)
    await keyring.seal("x", tenant_id="acme", customer_id="new", field="customer_email")

    await owner_conn.execute("VACUUM customer_key")
    vacuumed = await _file(owner_conn)
    await owner_conn.execute("VACUUM FULL customer_key")
    written_anew = await _file(owner_conn)

    # A plain VACUUM is not enough, so the documents do not say that it is.
    assert any(key in vacuumed for key in (*before, *destroyed))
    assert not any(key in written_anew for key in (*before, *destroyed))
    (present,) = await _read(owner_conn)
    assert present in written_anew, "the file has the present key, so it is the right one"


async def _made(keyring: Keyring, connection: psycopg.AsyncConnection) -> list[bytes]:
    for number in range(_CUSTOMERS):
        await keyring.seal("x", tenant_id="acme", customer_id=f"{number}", field="customer_email")
    return await _read(connection)


async def _read(connection: psycopg.AsyncConnection) -> list[bytes]:
    return [key for (key,) in await (await connection.execute(_KEYS)).fetchall() if key is not None]


async def _file(connection: psycopg.AsyncConnection) -> bytes:
    """The table as the disk has it."""
    await connection.execute("CHECKPOINT")
    row = await (await connection.execute(_FILE)).fetchone()
    assert row is not None
    return await asyncio.to_thread(Path(*row).read_bytes)
