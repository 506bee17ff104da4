"""What a restore brings back can be read, except the texts of customers who were erased."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from msgspec import structs
from psycopg import sql

from events import keys
from hydracore.audit.errors import ErasuresUnknown
from hydracore.db.clients import postgres_client
from hydracore.db.restore import copy_script
from tests.api_server import running_api
from tests.customers import ADA_KEY, EMAIL, PROMPT, World, last_event, readable_fields, world_fixture
from tests.services import Services, empty_database

__all__ = ["world_fixture"]

#: A restore brings back a key that had been destroyed.
RESTORED = "UPDATE customer_key SET wrapped_key = %s, destroyed_at = NULL WHERE customer_id = 'ada'"


@pytest.fixture
def elsewhere(services: Services, world: World) -> Generator[str]:
    """A fresh database of the same cluster."""
    name = world.url.rpartition("/")[2] + "_restored"
    with psycopg.connect(services.postgres_url.format("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield services.postgres_url.format(name)
    services.drop_database(name)


def dump_all_of(url: str, path: Path, *words: str) -> Path:
    command = [postgres_client("pg_dump"), "--format=custom", "--no-owner", *words, f"--file={path}", url]
    subprocess.run(command, check=True)
    return path


def restore(world: World, path: Path, url: str) -> None:
    result = world.run("db", "restore", str(path), HYDRACORE_DATABASE_URL=url)
    assert result.exit_code == 0, result.output


def script_of(path: Path) -> bytes:
    command = [postgres_client("pg_restore"), "--no-owner", "--file=-", path]
    return subprocess.run(command, check=True, capture_output=True).stdout


def back_up(world: World, path: Path, *words: str) -> Path:
    result = world.run("db", "backup", str(path), *words)
    assert result.exit_code == 0, result.output
    return path


async def test_a_restored_backup_of_the_log_alone_cannot_be_decrypted(
    world: World, elsewhere: str, tmp_path: Path
) -> None:
    backup = await asyncio.to_thread(back_up, world, tmp_path / "log.dump")
    await asyncio.to_thread(world.erase, "--also-live", "--yes")

    await asyncio.to_thread(restore, world, backup, elsewhere)

    # Even before a migration has erased her again.
    assert await readable_fields(elsewhere, world.ada[0], "ada") == []
    migrated = await asyncio.to_thread(world.run, "db", "migrate", HYDRACORE_DATABASE_URL=elsewhere)
    assert "erased again: 1 customer's key destroyed, recorded in 3 instances" in migrated.stdout
    await is_whole_and_erased(world, elsewhere)


@pytest.mark.parametrize("whole", [True, False], ids=["everything", "the log and the keys"])
async def test_a_migration_after_a_restore_with_keys_erases_the_erased_customers_again(
    world: World, elsewhere: str, tmp_path: Path, *, whole: bool
) -> None:
    """The backup is a dump of everything made by hand, or the keys' own backup that was not deleted yet."""
    backups = [tmp_path / "everything.dump"]
    if whole:
        await asyncio.to_thread(dump_all_of, world.url, backups[0])
    else:
        words = ((), ("--keys",))
        backups = [await asyncio.to_thread(back_up, world, tmp_path / f"{len(each)}.dump", *each) for each in words]
    await asyncio.to_thread(world.erase, "--also-live", "--yes")
    for backup in backups:
        await asyncio.to_thread(restore, world, backup, elsewhere)
    assert await readable_fields(elsewhere, world.ada[0], "ada") == [EMAIL, PROMPT], "the key is back"

    migrated = await asyncio.to_thread(world.run, "db", "migrate", HYDRACORE_DATABASE_URL=elsewhere)

    assert "erased again" in migrated.stdout
    await is_whole_and_erased(world, elsewhere)
    assert await readable_fields(elsewhere, world.bob, "bob") == [EMAIL, PROMPT]


async def test_keys_restored_after_a_migration_do_not_include_those_that_it_destroyed(
    world: World, elsewhere: str, tmp_path: Path
) -> None:
    """The keys' backup has Ada's. Eve came and was erased after it. Who restores the keys may make no temporary table."""
    log = await asyncio.to_thread(back_up, world, tmp_path / "log.dump")
    only_keys = await asyncio.to_thread(back_up, world, tmp_path / "keys.dump", "--keys")
    await asyncio.to_thread(world.erase, "--also-live", "--yes")
    world.file.append([structs.replace(each, customer_id="eve") for each in world.file.erasures().values()])
    await asyncio.to_thread(restore, world, log, elsewhere)
    migrated = await asyncio.to_thread(world.run, "db", "migrate", HYDRACORE_DATABASE_URL=elsewhere)
    assert "erased again: 2 customers' keys destroyed" in migrated.stdout

    with keeper_of_the_keys(elsewhere) as url:
        await asyncio.to_thread(restore, world, only_keys, url)

    with psycopg.connect(elsewhere) as connection:
        left = connection.execute("SELECT customer_id, wrapped_key IS NULL FROM customer_key ORDER BY 1").fetchall()
    assert left == [("ada", True), ("bob", False), ("eve", True)]
    await is_whole_and_erased(world, elsewhere)
    assert await readable_fields(elsewhere, world.bob, "bob") == [EMAIL, PROMPT]


@contextmanager
def keeper_of_the_keys(url: str) -> Generator[str]:
    """The URL of a role that owns nothing but the keys' table meanwhile."""
    name = f"keeper_{uuid4().hex}"
    keeper = sql.Identifier(name)
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in (
            sql.SQL("CREATE ROLE {}").format(keeper),
            sql.SQL("GRANT USAGE, CREATE ON SCHEMA public TO {}").format(keeper),
            sql.SQL("ALTER TABLE customer_key OWNER TO {}").format(keeper),
            sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(connection.info.dbname)),
        ):
            connection.execute(statement)
        try:
            yield f"{url}?options=-c%20role%3D{name}"
        finally:
            connection.execute(sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(keeper))
            connection.execute(sql.SQL("DROP OWNED BY {}").format(keeper))
            connection.execute(sql.SQL("DROP ROLE {}").format(keeper))


async def is_whole_and_erased(world: World, url: str) -> None:
    for stream_id in world.ada:
        assert await readable_fields(url, stream_id, "ada") == []
        assert await last_event(url, stream_id) == "customer_erased"
    verified = await asyncio.to_thread(world.run, "audit", "verify", "--json", HYDRACORE_DATABASE_URL=url)
    assert (verified.exit_code, json.loads(verified.stdout)["findings"]) == (0, [])
    again = await asyncio.to_thread(world.run, "db", "migrate", HYDRACORE_DATABASE_URL=url)
    assert again.stdout == "nothing to apply\n"


async def test_a_starting_api_destroys_the_restored_key_of_an_erased_customer_before_it_serves(
    world: World, owner_conn: psycopg.AsyncConnection, redis_url: str
) -> None:
    wrapped = await (await owner_conn.execute(ADA_KEY)).fetchone()
    await asyncio.to_thread(world.erase, "--also-live", "--yes")
    await owner_conn.execute(RESTORED.encode(), wrapped)

    async with running_api(world.url, redis_url, erasure_file=world.file.path):
        assert await readable_fields(world.url, world.ada[0], "ada") == []
    assert await readable_fields(world.url, world.bob, "bob") == [EMAIL, PROMPT]


# --- refused restores ------------------------------------------------------------------------------------------------


async def test_an_impossible_restore_is_refused_with_the_reason(world: World, elsewhere: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("something else")
    log = await asyncio.to_thread(back_up, world, tmp_path / "log.dump")
    only_keys = await asyncio.to_thread(back_up, world, tmp_path / "keys.dump", "--keys")

    def refusal(path: Path, url: str) -> str:
        result = world.run("db", "restore", str(path), HYDRACORE_DATABASE_URL=url)
        assert result.exit_code == 2, result.output
        return result.stderr

    assert "HYDRACORE_DATABASE_URL is missing" in refusal(log, "")
    assert f"{other} is not a readable backup" in refusal(other, elsewhere)
    assert "does not exist" in refusal(tmp_path / "nowhere", elsewhere)
    assert "has only the customers' keys: restore the database's backup first" in refusal(only_keys, elsewhere)
    assert "The database is not empty" in refusal(log, world.url)
    assert "The database already has customers' keys" in refusal(only_keys, world.url)


async def test_a_restore_into_a_database_that_cannot_store_every_text_is_refused(
    world: World, services: Services, tmp_path: Path
) -> None:
    backup = await asyncio.to_thread(back_up, world, tmp_path / "log.dump")

    # What `createdb` makes in a cluster that was initialized without a locale.
    with empty_database(services, " TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'") as url:
        result = await asyncio.to_thread(world.run, "db", "restore", str(backup), HYDRACORE_DATABASE_URL=url)

    assert result.exit_code == 2
    assert "The database has the encoding SQL_ASCII: create one with ENCODING 'UTF8'." in result.stderr


@pytest.mark.parametrize("of", ["an empty database", "another program's database", "our schema without rows"])
async def test_a_restore_of_a_dump_without_a_log_is_refused(
    world: World, elsewhere: str, empty_url: str, tmp_path: Path, of: str
) -> None:
    with psycopg.connect(empty_url, autocommit=True) as connection:
        if of == "another program's database":
            connection.execute("CREATE TABLE event (id int); CREATE TABLE invoice (id int)")
    source, words = (world.url, ["--schema-only"]) if of == "our schema without rows" else (empty_url, [])
    path = dump_all_of(source, tmp_path / "other.dump", *words)

    refused = world.run("db", "restore", str(path), HYDRACORE_DATABASE_URL=elsewhere)

    assert refused.exit_code == 2, refused.output
    assert f"{path} is not a backup of a HydraCore database or of its keys" in refused.stderr
    with psycopg.connect(elsewhere) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


@pytest.mark.parametrize("reason", ["the file is truncated", "a relation is in the way"])
async def test_a_failed_restore_leaves_no_tables(world: World, elsewhere: str, tmp_path: Path, reason: str) -> None:
    path = await asyncio.to_thread(back_up, world, tmp_path / "log.dump")
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        if reason == "the file is truncated":
            path.write_bytes(path.read_bytes()[:-10])
            said = "pg_restore: error: could not read from input file"
        else:
            connection.execute("CREATE SEQUENCE projection_intervention_id_seq")
            said = 'relation "projection_intervention_id_seq" already exists'

        result = world.run("db", "restore", str(path), HYDRACORE_DATABASE_URL=elsewhere)

        assert (result.exit_code, said in result.stderr) == (3, True), result.output
        left = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert left == (0,)


async def test_a_restore_omits_a_setting_that_older_servers_do_not_know(world: World, tmp_path: Path) -> None:
    path = await asyncio.to_thread(back_up, world, tmp_path / "log.dump")
    script = await asyncio.to_thread(script_of, path)
    passed_on = io.BytesIO()

    copy_script(io.BytesIO(script), passed_on)

    assert (script.count(b"SET transaction_timeout"), passed_on.getvalue().count(b"SET transaction_timeout")) == (1, 0)
    assert set(script.splitlines()) - set(passed_on.getvalue().splitlines()) == {b"SET transaction_timeout = 0;"}


# --- the erasure file ------------------------------------------------------------------------------------------------


async def is_not_served(world: World, redis_url: str, file: Path, reason: str) -> None:
    with pytest.raises(ErasuresUnknown, match=f"the file that lists erased customers, cannot be read: {reason}"):
        async with running_api(world.url, redis_url, erasure_file=file):
            pass
    migrated = await asyncio.to_thread(world.run, "db", "migrate", HYDRACORE_ERASURE_FILE=str(file))
    assert (migrated.exit_code, f"cannot be read: {reason}" in migrated.stderr) == (3, True)


async def test_an_unreadable_erasure_file_stops_the_api_and_migrations(
    world: World, tmp_path: Path, redis_url: str
) -> None:
    await is_not_served(world, redis_url, tmp_path, "Is a directory")
    await is_not_served(world, redis_url, tmp_path / "not mounted" / "erasures.jsonl", "there is no directory")


@pytest.mark.parametrize("known_from", ["the keys", "the log"])
async def test_after_an_erasure_a_missing_erasure_file_stops_the_api_migrations_and_erasures(
    world: World, owner_conn: psycopg.AsyncConnection, tmp_path: Path, redis_url: str, known_from: str
) -> None:
    wrapped = await (await owner_conn.execute(ADA_KEY)).fetchone()
    if known_from == "the keys":
        await keys.destroy(world.pool, [("acme", "ada")])
    else:
        await asyncio.to_thread(world.erase, "--also-live", "--yes")
        await owner_conn.execute(RESTORED.encode(), wrapped)

    await is_not_served(
        world, redis_url, tmp_path / "missing", "it does not exist, but the database has erased customers"
    )
    ordered = await asyncio.to_thread(
        world.erase, "--also-live", "--yes", HYDRACORE_ERASURE_FILE=str(tmp_path / "missing")
    )

    assert (ordered.exit_code, "the database has erased customers" in ordered.stderr) == (3, True)


async def test_after_an_erasure_an_unset_erasure_file_stops_the_api_and_migrations(
    world: World, redis_url: str
) -> None:
    await keys.destroy(world.pool, [("acme", "ada")])
    said = "HYDRACORE_ERASURE_FILE, the file that lists erased customers, is not set, but the database has erased customers"

    with pytest.raises(ErasuresUnknown, match=said):
        async with running_api(world.url, redis_url):
            pass
    migrated = await asyncio.to_thread(world.run, "db", "migrate", HYDRACORE_ERASURE_FILE="")

    assert (migrated.exit_code, migrated.stderr) == (3, f"hydracore: {said}\n")


async def test_no_erasure_file_is_needed_before_the_first_erasure(world: World, redis_url: str) -> None:
    async with running_api(world.url, redis_url, erasure_file=world.file.path):
        assert await readable_fields(world.url, world.ada[0], "ada") == [EMAIL, PROMPT]
    for told_where in (str(world.file.path), ""):
        migrated = await asyncio.to_thread(world.run, "db", "migrate", HYDRACORE_ERASURE_FILE=told_where)

        assert (migrated.exit_code, migrated.stdout) == (0, "nothing to apply\n")
    assert not world.file.path.exists()


# --- lost keys -------------------------------------------------------------------------------------------------------


async def test_texts_whose_key_is_in_no_backup_are_null_and_their_customer_can_write_new_ones(
    world: World, owner_conn: psycopg.AsyncConnection, redis_url: str
) -> None:
    # The state after a restore of keys from before she was a customer.
    await owner_conn.execute("DELETE FROM customer_key WHERE customer_id = 'ada'")
    order = {"region_id": "local", "tier_id": "starter", "preset_id": "personal_assistant"}
    path = f"/v1/instances/{world.ada[2]}"

    async with running_api(world.url, redis_url) as api:
        ada, admin = api.token(user="ada", email="ada@example.org"), api.token(user="root", role="admin")
        created = await api.client.post("/v1/instances", json=order, headers=ada)
        listed = await api.client.get("/v1/instances", headers=admin)
        paths = ("", "/config", "/platform-config", "/runtime", "/events")
        shown = {each: await api.client.get(path + each, headers=ada) for each in paths}
        changed = await api.client.post(f"{path}/config", json={"system_prompt": "New"}, headers=ada)

    assert created.status_code == 202
    emails = {each["id"]: each["customer_email"] for each in listed.json()["instances"]}
    assert emails == {str(world.ada[2]): None, created.json()["instance_id"]: "ada@example.org"}
    assert {each: answer.status_code for each, answer in shown.items()} == dict.fromkeys(paths, 200)
    assert shown["/config"].json()["system_prompt"] is None
    assert (changed.status_code, changed.json()["system_prompt"]) == (200, "New")
