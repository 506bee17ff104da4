"""An erased customer is unreadable wherever they were: in the log, in read tables, and in whatever is restored afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from events import commands as c
from events import keys
from events.ids import instance_id_for
from events.keys import Keyring
from events.state import TEARDOWN_STEPS
from events.store import EventStore
from hydracore.audit.erasure_file import ErasureFile
from hydracore.audit.errors import ErasuresUnknown
from hydracore.cli import main
from hydracore.db.pool import open_pool
from hydracore.embedded.binaries import pg_dump
from tests import lives
from tests.api_server import running_api
from tests.requests_to_log import NOW_MS, open_store, origin, request
from tests.services import Services
from tests.waiting import until

MASTER_KEY = bytes(range(32))
EMAIL, PROMPT = "ada@example.com", "You know that Ada is ill."

_EVENTS = "SELECT type FROM event WHERE stream_id = %s ORDER BY version DESC LIMIT 1"
_KEY = "SELECT wrapped_key FROM customer_key WHERE customer_id = 'ada'"


class World(NamedTuple):
    """`ada`: three instances of hers, the last one not deleted; `bob`: one of his."""

    url: str
    file: ErasureFile
    store: EventStore
    pool: AsyncConnectionPool
    ada: list[UUID]
    bob: UUID

    def run(self, *words: str, **environ: str) -> Result:
        return CliRunner().invoke(main, words, env=self.environ | environ)

    @property
    def environ(self) -> dict[str, str]:
        return {"HYDRACORE_DATABASE_URL": self.url, "HYDRACORE_ERASURE_FILE": str(self.file.path)}

    def erase(self, *words: str) -> Result:
        return self.run("audit", "erase-customer", "ada", *words)


@pytest.fixture
async def world(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[World]:
    monkeypatch.setattr(keys, "CACHE_S", 0.0)
    file = ErasureFile(tmp_path / "erasures.jsonl")
    async with open_store(database_url) as (store, pool):
        keyring = Keyring(pool, master_key=MASTER_KEY)
        ada = [await lived(store, keyring, "ada", f"key {number}") for number in range(3)]
        bob = await lived(store, keyring, "bob", "key")
        for stream_id in (*ada[:2], bob):
            await deleted(store, stream_id)
        yield World(database_url, file, store, pool, ada, bob)


async def lived(store: EventStore, keyring: Keyring, customer: str, key: str) -> UUID:
    """An instance with an address and a prompt that are sealed."""
    whose = {"tenant_id": "acme", "customer_id": customer}
    stream_id = instance_id_for(**whose, idempotency_key=key)
    email = await keyring.seal(EMAIL, **whose, field="customer_email")
    prompt = await keyring.seal(PROMPT, **whose, field="system_prompt")
    await store.create(stream_id, replace(request(customer, key), customer_email=email), origin())
    await store.execute(stream_id, c.ChangeConfig(at_ms=NOW_MS, system_prompt=prompt), origin())
    return stream_id


async def deleted(store: EventStore, stream_id: UUID) -> None:
    for command in (lives.delete(), *map(lives.teardown, TEARDOWN_STEPS), lives.finish()):
        await store.execute(stream_id, command, origin("worker"))


async def readable(url: str, stream_id: UUID, customer: str) -> list[str]:
    """What a process that has just started can open of the instance's history."""
    async with open_pool(url, role="hydracore_app", application="test", size=1) as pool:
        async with pool.connection() as connection:
            statement = "SELECT payload FROM event WHERE stream_id = %s ORDER BY version"
            payloads = [payload for (payload,) in await (await connection.execute(statement, (stream_id,))).fetchall()]
        sealed = [
            (name, each[name]) for each in payloads for name in ("customer_email", "system_prompt") if name in each
        ]
        assert len(sealed) == 2, "the ciphertext is still there"
        keyring, whose = Keyring(pool, master_key=MASTER_KEY), {"tenant_id": "acme", "customer_id": customer}
        texts = [await keyring.open(text, **whose, field=name) for name, text in sealed]
    return [text for text in texts if text is not None]


async def last_event(url: str, stream_id: UUID) -> str:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        row = await (await connection.execute(_EVENTS, (stream_id,))).fetchone()
    assert row is not None
    return row[0]


async def test_an_erasure_reaches_the_log_the_read_tables_and_nobody_else(
    world: World, owner_conn: psycopg.AsyncConnection
) -> None:
    await world.store.load(world.ada[0])
    assert await readable(world.url, world.ada[0], "ada") == [EMAIL, PROMPT]

    first, second = [await asyncio.to_thread(world.erase, "--also-live", "--yes", "--json") for _ in range(2)]

    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    done = {"tenant_id": "acme", "customer_id": "ada", "instances": 3, "live": 1}
    assert json.loads(first.stdout) == {**done, "recorded": 3, "key_destroyed": True}
    assert json.loads(second.stdout) == {**done, "recorded": 0, "key_destroyed": False}
    for stream_id in world.ada:
        assert await readable(world.url, stream_id, "ada") == []
        assert await last_event(world.url, stream_id) == "customer_erased"
    assert await readable(world.url, world.bob, "bob") == [EMAIL, PROMPT]
    rows = await owner_conn.execute("SELECT customer_id, count(customer_email) FROM instance GROUP BY 1 ORDER BY 1")
    assert await rows.fetchall() == [("ada", 0), ("bob", 1)]
    (order,) = world.file.read()
    assert order.customer == ("acme", "ada")


async def test_the_log_is_whole_and_the_read_tables_can_be_built_anew_after_an_erasure(world: World) -> None:
    world_is_erased = await asyncio.to_thread(world.erase, "--also-live", "--yes")
    assert world_is_erased.exit_code == 0

    verified = await asyncio.to_thread(world.run, "audit", "verify", "--json")
    rebuilt = await asyncio.to_thread(world.run, "projections", "rebuild", "instance", "--dry-run", "--workers", "1")

    assert (verified.exit_code, json.loads(verified.stdout)["findings"]) == (0, [])
    assert rebuilt.exit_code == 0, rebuilt.output


async def test_who_has_an_instance_that_is_not_deleted_is_not_erased_unasked(world: World) -> None:
    result = await asyncio.to_thread(world.erase, "--yes")

    assert result.exit_code == 2
    assert f"has 1 instance that is not deleted ({world.ada[2]}). Delete first what is there" in result.stderr
    assert not world.file.known()
    assert await readable(world.url, world.ada[0], "ada") == [EMAIL, PROMPT]


async def test_it_is_asked_first_and_anything_but_yes_is_no(world: World) -> None:
    env, words = world.environ, ["audit", "erase-customer", "ada", "--tenant", "acme", "--also-live"]
    answers = {
        answer: await asyncio.to_thread(CliRunner().invoke, main, words, env=env, input=answer)
        for answer in ("n\n", "", "y\n")
    }

    assert [result.exit_code for result in answers.values()] == [2, 2, 0]
    assert "has 3 instances, 1 of them not deleted." in answers["n\n"].stderr
    assert answers["y\n"].stdout.startswith("customer ada of tenant acme: key destroyed, recorded in 3 of 3 instances")


async def test_nobody_is_erased_by_mistake(world: World) -> None:
    keyring = Keyring(world.pool, master_key=MASTER_KEY)
    await keyring.seal(EMAIL, tenant_id="other", customer_id="ada", field="customer_email")

    several = await asyncio.to_thread(world.erase, "--yes")
    unknown = await asyncio.to_thread(world.erase, "--yes", "--tenant", "nobody")
    no_file = await asyncio.to_thread(world.run, "audit", "erase-customer", "ada", HYDRACORE_ERASURE_FILE="")

    assert "Tenants acme, other have a customer ada: name one with --tenant" in several.stderr
    assert "There is no customer ada of tenant nobody" in unknown.stderr
    assert "HYDRACORE_ERASURE_FILE is missing" in no_file.stderr
    assert [each.exit_code for each in (several, unknown, no_file)] == [2, 2, 2]
    assert not world.file.known()


# --- kills -----------------------------------------------------------------------------------------------------------

_LOCKS = {
    "ordered": "SELECT FROM customer_key FOR UPDATE",
    "destroyed": "SELECT FROM lane_head FOR UPDATE",
}
_WAITS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.mark.parametrize("point", _LOCKS)
async def test_an_erasure_that_is_killed_is_completed_by_the_next(
    world: World, owner_conn: psycopg.AsyncConnection, point: str
) -> None:
    async with await psycopg.AsyncConnection.connect(world.url) as holder:
        await holder.execute(_LOCKS[point].encode())
        command = [sys.executable, "-c", _IMPATIENT, "audit", "erase-customer", "ada", "--also-live", "--yes"]
        victim = await asyncio.create_subprocess_exec(*command, env=os.environ | world.environ)

        async def stopped() -> bool:
            return (await (await owner_conn.execute(_WAITS)).fetchone()) == (1,)

        await until(stopped)
        victim.kill()
        await victim.wait()
        # What the server was asked for it may still do, once it can.
        assert ("acme", "ada") in world.file.known()
        (key,) = await (await owner_conn.execute(_KEY)).fetchone() or ()
        assert (key is None) == (point == "destroyed")

    result = await asyncio.to_thread(world.erase, "--also-live", "--yes")

    assert result.exit_code == 0
    for stream_id in world.ada:
        assert await readable(world.url, stream_id, "ada") == []
        assert await last_event(world.url, stream_id) == "customer_erased"


#: The command line, which does not wait for other processes' memory: there are none.
_IMPATIENT = "from events import keys; keys.CACHE_S = 0.0; from hydracore.cli import main; main()"


# --- restores --------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(services: Services, world: World) -> Generator[str]:
    """A fresh database of the same cluster."""
    name = world.url.rpartition("/")[2] + "_restored"
    with psycopg.connect(services.postgres_url.format("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield services.postgres_url.format(name)
    services.drop_database(name)


def dump_everything(world: World, path: Path) -> None:
    subprocess.run([pg_dump(), "--format=custom", "--no-owner", f"--file={path}", world.url], check=True)


def restore(path: Path, url: str) -> None:
    program = pg_dump().with_name("pg_restore")
    subprocess.run([program, "--no-owner", "--exit-on-error", f"--dbname={url}", path], check=True, capture_output=True)


def back_up(world: World, path: Path, *words: str) -> Path:
    result = world.run("db", "backup", str(path), *words)
    assert result.exit_code == 0, result.output
    return path


async def test_the_backup_of_the_log_has_no_key_so_that_no_restore_of_it_can_be_read(
    world: World, elsewhere: str, tmp_path: Path
) -> None:
    backup = await asyncio.to_thread(back_up, world, tmp_path / "log.dump")
    await asyncio.to_thread(world.erase, "--also-live", "--yes")

    await asyncio.to_thread(restore, backup, elsewhere)

    # Not even before anybody has said that she was erased.
    assert await readable(elsewhere, world.ada[0], "ada") == []
    migrated = await asyncio.to_thread(world.run, "db", "migrate", HYDRACORE_DATABASE_URL=elsewhere)
    assert "erased again: 1 customers' keys destroyed, recorded in 3 instances" in migrated.stdout
    await is_whole_and_erased(world, elsewhere)


@pytest.mark.parametrize("whole", [True, False], ids=["everything", "the log and the keys"])
async def test_a_backup_with_the_key_is_unreadable_again_once_it_is_restored(
    world: World, elsewhere: str, tmp_path: Path, *, whole: bool
) -> None:
    """Somebody has dumped all of it by hand; or the keys' own backup is not old enough to be gone."""
    backups = [tmp_path / "everything.dump"]
    if whole:
        await asyncio.to_thread(dump_everything, world, backups[0])
    else:
        words = ((), ("--keys",))
        backups = [await asyncio.to_thread(back_up, world, tmp_path / f"{len(each)}.dump", *each) for each in words]
    await asyncio.to_thread(world.erase, "--also-live", "--yes")
    for backup in backups:
        await asyncio.to_thread(restore, backup, elsewhere)
    assert await readable(elsewhere, world.ada[0], "ada") == [EMAIL, PROMPT], "the key is back"

    migrated = await asyncio.to_thread(world.run, "db", "migrate", HYDRACORE_DATABASE_URL=elsewhere)

    assert "erased again" in migrated.stdout
    await is_whole_and_erased(world, elsewhere)
    assert await readable(elsewhere, world.bob, "bob") == [EMAIL, PROMPT]


async def is_whole_and_erased(world: World, url: str) -> None:
    for stream_id in world.ada:
        assert await readable(url, stream_id, "ada") == []
        assert await last_event(url, stream_id) == "customer_erased"
    verified = await asyncio.to_thread(world.run, "audit", "verify", "--json", HYDRACORE_DATABASE_URL=url)
    assert (verified.exit_code, json.loads(verified.stdout)["findings"]) == (0, [])
    again = await asyncio.to_thread(world.run, "db", "migrate", HYDRACORE_DATABASE_URL=url)
    assert again.stdout == "nothing to apply\n"


async def test_an_api_that_starts_on_a_restored_key_destroys_it_before_it_serves(
    world: World, owner_conn: psycopg.AsyncConnection, redis_url: str
) -> None:
    wrapped = await (await owner_conn.execute(_KEY)).fetchone()
    await asyncio.to_thread(world.erase, "--also-live", "--yes")
    restored = "UPDATE customer_key SET wrapped_key = %s, destroyed_at = NULL WHERE customer_id = 'ada'"
    await owner_conn.execute(restored.encode(), wrapped)

    async with running_api(world.url, redis_url, erasure_file=world.file.path):
        assert await readable(world.url, world.ada[0], "ada") == []
    assert await readable(world.url, world.bob, "bob") == [EMAIL, PROMPT]


async def test_a_list_of_the_erased_that_cannot_be_read_stops_whoever_would_serve_them(
    world: World, tmp_path: Path, redis_url: str
) -> None:
    with pytest.raises(ErasuresUnknown, match="says who was erased and cannot be read"):
        async with running_api(world.url, redis_url, erasure_file=tmp_path):
            pass

    result = await asyncio.to_thread(world.run, "db", "migrate", HYDRACORE_ERASURE_FILE=str(tmp_path))
    assert (result.exit_code, "says who was erased" in result.stderr) == (1, True)
