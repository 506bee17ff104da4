"""`master-key rewrap`: every customer's key is wrapped with the present master key, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg_pool import AsyncConnectionPool

from events.errors import CustomerErased
from events.keys import Keyring, destroy
from events.master_keys import MasterKeys
from events.rewrapping import BATCH
from events.wrapping import KeyWrapper
from hydracore.cli import main
from hydracore.db.pool import open_pool
from tests.command import Command, run_forked
from tests.waiting import until

OLD, NEW = bytes(range(32)), bytes(range(1, 33))
ADA = {"tenant_id": "acme", "customer_id": "ada", "field": "customer_email"}
EMAIL = "ada@example.com"

_INSERT = "INSERT INTO customer_key (tenant_id, customer_id, wrapped_key) VALUES ('acme', %s, %s)"
#: An update of this customer's key waits for the lock 1.
_STOP_AT = """
    CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;
    CREATE TRIGGER stop BEFORE UPDATE ON customer_key
       FOR EACH ROW WHEN (NEW.customer_id = '{}') EXECUTE FUNCTION stop();
"""
_STOPPED = """
    SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database d ON d.oid = database
                    WHERE locktype = 'advisory' AND NOT granted AND d.datname = current_database())
"""
_AT_WORK = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'hydracore-audit'
"""


@pytest.fixture
async def pool(database_url: str) -> AsyncGenerator[AsyncConnectionPool]:
    async with open_pool(database_url, role="hydracore_app", application="test", size=4) as opened:
        yield opened


def environ(database_url: str, *, former: bytes | None = OLD) -> dict[str, str]:
    texts = {"HYDRACORE_DATABASE_URL": database_url, "HYDRACORE_MASTER_KEY": urlsafe_b64encode(NEW).decode()}
    return texts if former is None else texts | {"HYDRACORE_MASTER_KEYS_FORMER": urlsafe_b64encode(former).decode()}


async def run(*words: str, env: dict[str, str]) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, main, ["master-key", *words], env=env)


async def wrapped_by_old(owner_conn: psycopg.AsyncConnection, count: int) -> list[str]:
    """This many customers, in the order in which their keys are rewrapped."""
    names = [f"c-{number:05}" for number in range(count)]
    wrapper = KeyWrapper(MasterKeys(OLD))
    async with owner_conn.transaction(), owner_conn.cursor() as cursor:
        await cursor.executemany(_INSERT, [(name, wrapper.wrap(os.urandom(32), "acme", name)) for name in names])
    return names


async def test_after_a_rewrap_sealed_texts_can_be_read_with_the_new_master_key_alone(
    pool: AsyncConnectionPool, database_url: str
) -> None:
    sealed = await Keyring(pool, master_keys=MasterKeys(OLD)).seal(EMAIL, **ADA)
    await Keyring(pool, master_keys=MasterKeys(NEW, [OLD])).seal(EMAIL, **ADA | {"customer_id": "bob"})

    first, again = [await run("rewrap", env=environ(database_url)) for _ in range(2)]

    assert (first.exit_code, first.output.splitlines()) == (
        0,
        [
            "rewrapped: 1 key",
            "customers' keys: 2 wrapped with the present master key",
        ],
    )
    assert (again.exit_code, again.output.splitlines()[0]) == (0, "rewrapped: 0 keys")
    alone = Keyring(pool, master_keys=MasterKeys(NEW))
    await alone.check()
    assert await alone.open(sealed, **ADA) == EMAIL


async def test_keys_that_no_master_key_opens_are_reported_and_left_unchanged(
    pool: AsyncConnectionPool, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    await Keyring(pool, master_keys=MasterKeys(b"x" * 32)).seal(EMAIL, **ADA)
    await Keyring(pool, master_keys=MasterKeys(OLD)).seal(EMAIL, **ADA | {"customer_id": "bob"})
    look = "SELECT wrapped_key FROM customer_key WHERE customer_id = 'ada'"
    before = await (await owner_conn.execute(look)).fetchone()

    result = await run("rewrap", "--json", env=environ(database_url))

    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "rewrapped": 1,
        "customer_keys": {"present": 1, "former": 0, "unreadable": 1},
    }
    assert await (await owner_conn.execute(look)).fetchone() == before


async def test_a_killed_rewrap_keeps_whole_batches_and_needs_the_former_key_until_it_is_completed(
    pool: AsyncConnectionPool, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    names = await wrapped_by_old(owner_conn, 2 * BATCH + 100)
    await owner_conn.execute(_STOP_AT.format(names[BATCH + 10]).encode())
    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute("SELECT pg_advisory_lock(1)")

        async def stopped() -> bool:
            return (await (await owner_conn.execute(_STOPPED)).fetchone()) == (True,)

        with Command.started("master-key", "rewrap", env=os.environ | environ(database_url)):
            await until(stopped)

    async def is_rolled_back() -> bool:
        return (await (await owner_conn.execute(_AT_WORK)).fetchone()) == (0,)

    await until(is_rolled_back)
    left = await run("status", "--json", env=environ(database_url))
    env = environ(database_url, former=None) | {
        "HYDRACORE_REDIS_URL": "redis://127.0.0.1:1",
        "HYDRACORE_JWT_SECRET": "x" * 32,
    }
    refused = await asyncio.to_thread(run_forked, "api", env=os.environ | env)
    next_one = await run("rewrap", env=environ(database_url))

    assert json.loads(left.stdout)["customer_keys"] == {"present": BATCH, "former": BATCH + 100, "unreadable": 0}
    assert (refused.status, left.exit_code, next_one.exit_code) == (2, 1, 0)
    assert (
        "only 0 of 100 customers' keys that were tried. If the master key was replaced"
        in refused.stderr.splitlines()[-1]
    )
    assert next_one.output.startswith(f"rewrapped: {BATCH + 100} keys\n")
    await Keyring(pool, master_keys=MasterKeys(NEW)).check()


async def test_a_rewrap_skips_a_key_that_is_being_destroyed_and_it_stays_destroyed(
    pool: AsyncConnectionPool, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    ring = Keyring(pool, master_keys=MasterKeys(OLD))
    for customer in ("ada", "bob"):
        await ring.seal(EMAIL, **ADA | {"customer_id": customer})

    async with owner_conn.transaction():
        await owner_conn.execute(
            "UPDATE customer_key SET wrapped_key = NULL, destroyed_at = now() WHERE customer_id = 'ada'"
        )
        meanwhile = await run("rewrap", env=environ(database_url))
    after = await run("rewrap", env=environ(database_url))

    assert (meanwhile.exit_code, meanwhile.output.splitlines()[0]) == (1, "rewrapped: 1 key")
    assert (after.exit_code, after.output.splitlines()[0]) == (0, "rewrapped: 0 keys")
    with pytest.raises(CustomerErased):
        await Keyring(pool, master_keys=MasterKeys(NEW)).seal(EMAIL, **ADA)


async def test_an_erasure_during_a_rewrap_waits_for_the_batch_and_destroys_the_rewrapped_key(
    pool: AsyncConnectionPool, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    await Keyring(pool, master_keys=MasterKeys(OLD)).seal(EMAIL, **ADA)
    await owner_conn.execute(_STOP_AT.format("ada").encode())
    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute("SELECT pg_advisory_lock(1)")
        wrapping = asyncio.create_task(run("rewrap", env=environ(database_url)))

        async def stopped() -> bool:
            return (await (await owner_conn.execute(_STOPPED)).fetchone()) == (True,)

        await until(stopped)
        erasing = asyncio.create_task(destroy(pool, [("acme", "ada")]))

        async def waits() -> bool:
            blocked = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted)"
            return (await (await owner_conn.execute(blocked)).fetchone()) == (True,)

        await until(waits)
    destroyed = await erasing
    await wrapping

    assert destroyed == {("acme", "ada")}
    assert await (await owner_conn.execute("SELECT wrapped_key FROM customer_key")).fetchall() == [(None,)]
