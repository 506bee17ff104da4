"""A list of the erased that is older than the database: what the database knows of erasures counts as well."""

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
from tests.customers import EMAIL, KEY, PROMPT, World, last_event, readable, world_fixture
from tests.disk import room_in_files

__all__ = ["world_fixture"]

#: Somebody who was erased long ago.
EVE = Erasure(tenant_id="acme", customer_id="eve", ordered_at=datetime(2026, 11, 25, tzinfo=UTC), by="test")

#: As after the restore of a log that is newer than the keys.
RESTORED = "UPDATE customer_key SET wrapped_key = %s, destroyed_at = NULL WHERE customer_id = 'ada'"


@pytest.fixture
async def outdated(world: World, owner_conn: psycopg.AsyncConnection) -> World:
    """Ada was erased, and her key is back; the file is a copy of before that, and lists Eve alone."""
    wrapped = await (await owner_conn.execute(KEY)).fetchone()
    await asyncio.to_thread(world.erase, "--also-live", "--yes")
    await owner_conn.execute(RESTORED.encode(), wrapped)
    world.file.path.unlink()
    world.file.append([EVE])
    assert await readable(world.url, world.ada[0], "ada") == [EMAIL, PROMPT], "the key is back"
    return world


async def test_an_api_that_starts_destroys_the_keys_of_those_who_are_erased_by_the_log_alone(
    outdated: World, redis_url: str
) -> None:
    with capture_logs() as logs:
        async with running_api(outdated.url, redis_url, erasure_file=outdated.file.path):
            assert await readable(outdated.url, outdated.ada[0], "ada") == []

    assert [each["count"] for each in logs if each["event"] == "erasures_not_listed"] == [1]
    assert await readable(outdated.url, outdated.bob, "bob") == [EMAIL, PROMPT]


async def test_a_migration_erases_them_adds_them_to_the_file_and_says_that_the_file_was_outdated(
    outdated: World,
) -> None:
    migrated = await asyncio.to_thread(outdated.run, "db", "migrate")

    assert migrated.exit_code == 1
    assert f"{outdated.file.path} lacked 1 erasure that the database has" in migrated.stderr
    assert await readable(outdated.url, outdated.ada[0], "ada") == []
    assert set(outdated.file.erasures()) == {("acme", "ada"), ("acme", "eve")}
    again = await asyncio.to_thread(outdated.run, "db", "migrate")
    assert (again.exit_code, again.output) == (0, "nothing to apply\n")


async def test_whose_rows_are_gone_stays_erased_by_what_the_log_says(
    outdated: World, owner_conn: psycopg.AsyncConnection, redis_url: str
) -> None:
    """Read tables can be built anew at any time, and then name her again."""
    await owner_conn.execute("DELETE FROM instance WHERE customer_id = 'ada'")

    with pytest.raises(ErasuresUnknown, match="the database has erased customers"):
        async with running_api(outdated.url, redis_url):
            pass
    async with running_api(outdated.url, redis_url, erasure_file=outdated.file.path):
        assert await readable(outdated.url, outdated.ada[0], "ada") == []

    assert await readable(outdated.url, outdated.bob, "bob") == [EMAIL, PROMPT]


async def test_a_forged_stream_that_does_not_say_whose_it_is_keeps_nobody_else_from_being_erased(
    outdated: World, owner_conn: psycopg.AsyncConnection
) -> None:
    forge = "UPDATE event SET payload = '{}' WHERE stream_id = %s AND version = 1"
    await owner_conn.execute(forge.encode(), (outdated.ada[1],))

    migrated = await asyncio.to_thread(outdated.run, "db", "migrate")

    assert migrated.exit_code == 1
    assert set(outdated.file.erasures()) == {("acme", "ada"), ("acme", "eve")}
    assert await readable(outdated.url, outdated.ada[0], "ada") == []


async def test_no_key_waits_for_a_file_that_cannot_be_written(outdated: World) -> None:
    """It may be mounted so that it can only be read. Bob is in it, and his key is back as well."""
    outdated.file.append([structs.replace(EVE, customer_id="bob")])

    with room_in_files(outdated.file.path.stat().st_size):
        refused = await asyncio.to_thread(outdated.run, "db", "migrate")

    assert refused.exit_code == 3
    assert (
        f"File too large: '{outdated.file.path}' (the keys of all erased customers are destroyed; see to"
        in refused.stderr
    )
    assert await readable(outdated.url, outdated.ada[0], "ada") == []
    assert await readable(outdated.url, outdated.bob, "bob") == []
    # Once it can be written, the rest is done, and it is said that the file was outdated.
    migrated = await asyncio.to_thread(outdated.run, "db", "migrate")
    assert (migrated.exit_code, "lacked 1 erasure" in migrated.stderr) == (1, True)
    assert await last_event(outdated.url, outdated.bob) == "customer_erased"
    again = await asyncio.to_thread(outdated.run, "db", "migrate")
    assert (again.exit_code, again.output) == (0, "nothing to apply\n")


async def test_an_empty_file_in_place_of_one_that_was_lost_is_filled_by_a_migration(world: World) -> None:
    """The erasure was cut off: no event says yet what the destroyed key says."""
    await keys.destroy(world.pool, [("acme", "ada")])
    world.file.path.touch()

    migrated = await asyncio.to_thread(world.run, "db", "migrate")

    assert (migrated.exit_code, "recorded in 3 instances" in migrated.stdout) == (1, True)
    assert set(world.file.erasures()) == {("acme", "ada")}
    assert await last_event(world.url, world.ada[0]) == "customer_erased"
