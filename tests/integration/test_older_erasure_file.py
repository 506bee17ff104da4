"""An erasure file that is older than the database: the erasures that only the database knows of hold, too."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import psycopg
import pytest
from msgspec import structs
from structlog.testing import capture_logs

from events import keys
from hydracore.audit.erasure_file import Erasure
from hydracore.audit.errors import ErasuresUnknown
from tests.api_server import running_api
from tests.customers import ADA_KEY, EMAIL, PROMPT, World, last_event, readable_fields, world_fixture
from tests.disk import limited_file_size

__all__ = ["world_fixture"]

#: An earlier erasure.
EVE = Erasure(tenant_id="acme", customer_id="eve", ordered_at=datetime(2026, 11, 25, tzinfo=UTC), by="test")

#: The state after restoring keys that are older than the log.
RESTORED = "UPDATE customer_key SET wrapped_key = %s, destroyed_at = NULL WHERE customer_id = 'ada'"


@pytest.fixture
async def outdated(world: World, owner_conn: psycopg.AsyncConnection) -> World:
    """Ada was erased, and her key is back; the file is a copy of before that, and lists Eve alone."""
    wrapped = await (await owner_conn.execute(ADA_KEY)).fetchone()
    await asyncio.to_thread(world.erase, "--also-live", "--yes")
    await owner_conn.execute(RESTORED.encode(), wrapped)
    world.file.path.unlink()
    world.file.append([EVE])
    assert await readable_fields(world.url, world.ada[0], "ada") == [EMAIL, PROMPT], "the key is back"
    return world


async def test_a_starting_api_destroys_keys_of_customers_that_only_the_log_lists_as_erased(
    outdated: World, redis_url: str
) -> None:
    with capture_logs() as logs:
        async with running_api(outdated.url, redis_url, erasure_file=outdated.file.path):
            assert await readable_fields(outdated.url, outdated.ada[0], "ada") == []

    assert [each["count"] for each in logs if each["event"] == "erasures_not_listed"] == [1]
    assert await readable_fields(outdated.url, outdated.bob, "bob") == [EMAIL, PROMPT]


async def test_a_migration_erases_and_lists_customers_that_the_file_lacks_and_reports_it_as_outdated(
    outdated: World,
) -> None:
    migrated = await asyncio.to_thread(outdated.run, "db", "migrate")

    assert migrated.exit_code == 1
    assert f"{outdated.file.path} lacked 1 erasure that the database has" in migrated.stderr
    assert await readable_fields(outdated.url, outdated.ada[0], "ada") == []
    assert set(outdated.file.erasures()) == {("acme", "ada"), ("acme", "eve")}
    again = await asyncio.to_thread(outdated.run, "db", "migrate")
    assert (again.exit_code, again.output) == (0, "nothing to apply\n")


async def test_an_erased_customer_without_read_table_rows_stays_erased(
    outdated: World, owner_conn: psycopg.AsyncConnection, redis_url: str
) -> None:
    """A rebuild of the read tables would name her again."""
    await owner_conn.execute("DELETE FROM instance WHERE customer_id = 'ada'")

    with pytest.raises(ErasuresUnknown, match="the database has erased customers"):
        async with running_api(outdated.url, redis_url):
            pass
    async with running_api(outdated.url, redis_url, erasure_file=outdated.file.path):
        assert await readable_fields(outdated.url, outdated.ada[0], "ada") == []

    assert await readable_fields(outdated.url, outdated.bob, "bob") == [EMAIL, PROMPT]


async def test_a_forged_stream_that_names_no_customer_does_not_stop_the_erasure_of_customers(
    outdated: World, owner_conn: psycopg.AsyncConnection
) -> None:
    forge = "UPDATE event SET payload = '{}' WHERE stream_id = %s AND version = 1"
    await owner_conn.execute(forge.encode(), (outdated.ada[1],))

    migrated = await asyncio.to_thread(outdated.run, "db", "migrate")

    assert migrated.exit_code == 1
    assert set(outdated.file.erasures()) == {("acme", "ada"), ("acme", "eve")}
    assert await readable_fields(outdated.url, outdated.ada[0], "ada") == []


async def test_keys_are_destroyed_even_if_the_erasure_file_cannot_be_written(outdated: World) -> None:
    """It may be mounted read-only. Bob is in it, and his key is back as well."""
    outdated.file.append([structs.replace(EVE, customer_id="bob")])

    with limited_file_size(outdated.file.path.stat().st_size):
        refused = await asyncio.to_thread(outdated.run, "db", "migrate")

    assert refused.exit_code == 3
    assert (
        f"File too large: '{outdated.file.path}' (the keys of all erased customers are destroyed; see to"
        in refused.stderr
    )
    assert await readable_fields(outdated.url, outdated.ada[0], "ada") == []
    assert await readable_fields(outdated.url, outdated.bob, "bob") == []
    # Once it can be written, the rest is done, and the file is reported as outdated.
    migrated = await asyncio.to_thread(outdated.run, "db", "migrate")
    assert (migrated.exit_code, "lacked 1 erasure" in migrated.stderr) == (1, True)
    assert await last_event(outdated.url, outdated.bob) == "customer_erased"
    again = await asyncio.to_thread(outdated.run, "db", "migrate")
    assert (again.exit_code, again.output) == (0, "nothing to apply\n")


async def test_a_migration_refills_an_empty_erasure_file_from_the_destroyed_keys(world: World) -> None:
    """The erasure was interrupted: the key is destroyed, but no event records it yet."""
    await keys.destroy(world.pool, [("acme", "ada")])
    world.file.path.touch()

    migrated = await asyncio.to_thread(world.run, "db", "migrate")

    assert (migrated.exit_code, "recorded in 3 instances" in migrated.stdout) == (1, True)
    assert set(world.file.erasures()) == {("acme", "ada")}
    assert await last_event(world.url, world.ada[0]) == "customer_erased"
