"""Sealing a real log: new events are sealed once, a lost copy is made again, and a rewritten log is not sealed again."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool
from structlog.testing import capture_logs

from events.errors import LogCorrupted
from events.seal import Seal, find_flaws
from events.store import EventStore
from hydracore.audit.errors import CopyContradicts
from hydracore.audit.seal_file import SealFile
from hydracore.audit.sealing import Sealer, keep_sealing, utc_now
from hydracore.db.backup import back_up
from hydracore.db.pool import conninfo
from hydracore.db.restore import restore
from hydracore.settings import Settings
from tests.services import OwnServices, Services
from tests.store_commands import create_instance, open_store
from tests.waiting import until

KEY = bytes(range(32))


class Log(NamedTuple):
    store: EventStore
    pool: AsyncConnectionPool
    sealer: Sealer
    file: SealFile


@pytest.fixture
async def log(database_url: str, tmp_path: Path) -> AsyncGenerator[Log]:
    """A log with one event, not sealed yet."""
    file = SealFile(tmp_path / "seals.jsonl")
    async with open_store(database_url) as (store, pool):
        await create_instance(store)
        yield Log(store, pool, Sealer(pool, key=KEY, file=file), file)


async def test_new_events_are_sealed_once(log: Log) -> None:
    first = await log.sealer.seal()
    nothing_new = await log.sealer.seal()
    instance_id = await create_instance(log.store, key="second")
    second = await log.sealer.seal()

    assert first is not None
    assert second is not None
    assert (first.number, sum(first.heads), nothing_new, second.number, sum(second.heads)) == (1, 1, None, 2, 2)
    assert second.heads[instance_id.bytes[15] & 63] > first.heads[instance_id.bytes[15] & 63]
    assert list(find_flaws(first, previous=None, public_key=first.public_key)) == []
    assert list(find_flaws(second, previous=first, public_key=first.public_key)) == []
    assert list(log.file.read()) == [first, second]


async def test_an_empty_log_has_nothing_to_seal(database_url: str) -> None:
    async with open_store(database_url) as (_, pool):
        assert await Sealer(pool, key=KEY).seal() is None


async def test_a_lost_copy_is_made_again(log: Log) -> None:
    seals = [await log.sealer.seal()]
    log.file.path.unlink()
    await create_instance(log.store, key="second")

    seals.append(await log.sealer.seal())

    assert list(log.file.read()) == seals


async def test_concurrent_sealers_leave_no_gap_and_no_duplicate(log: Log, database_url: str) -> None:
    others = [Sealer(log.pool, key=KEY) for _ in range(3)]

    made: list[Seal | None] = []
    for number in range(5):
        await create_instance(log.store, key=f"another {number}")
        made += await asyncio.gather(*(sealer.seal() for sealer in others))

    with psycopg.connect(database_url) as connection:
        numbers = [row[0] for row in connection.execute("SELECT number FROM seal ORDER BY number")]
    assert numbers == list(range(1, 6))
    assert len([seal for seal in made if seal is not None]) == 5


async def test_no_seal_is_made_while_the_last_one_is_younger_than_the_given_age(log: Log) -> None:
    await log.sealer.seal()
    await create_instance(log.store, key="second")

    assert await log.sealer.seal(age_min=timedelta(minutes=1)) is None
    assert await log.sealer.seal(age_min=timedelta(0)) is not None


async def test_a_seal_dated_in_the_future_does_not_stop_later_seals(log: Log, database_url: str) -> None:
    hasty = Sealer(log.pool, key=KEY, clock=lambda: utc_now() + timedelta(hours=1))
    first = await hasty.seal()
    await create_instance(log.store, key="second")

    second = await log.sealer.seal()
    await create_instance(log.store, key="third")
    settings = Settings(database_url=database_url, seal_key=KEY, seal_file=log.file.path, seal_interval_s=0.01)
    with capture_logs() as said:
        sealing = asyncio.create_task(keep_sealing(log.pool, settings))
        await until(lambda: "last_seal_of_the_future" in [line["event"] for line in said])
        sealing.cancel()

    assert first is not None
    assert second is not None
    third = log.file.last()
    assert third is not None
    assert [(seal.number, seal.sealed_at) for seal in (second, third)] == [(2, first.sealed_at), (3, first.sealed_at)]
    assert list(find_flaws(third, previous=second, public_key=third.public_key)) == []


async def test_a_copy_with_seals_missing_from_the_database_is_an_alarm_and_is_left_unchanged(
    log: Log, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    await log.sealer.seal()
    await create_instance(log.store, key="second")
    await log.sealer.seal()
    copied = log.file.path.read_bytes()
    settings = Settings(database_url=database_url, seal_key=KEY, seal_file=log.file.path, seal_interval_s=0.01)
    # As a backup of before the second seal has it; then as it is once there is another second seal, and a third.
    await owner_conn.execute("DELETE FROM seal WHERE number = 2")

    with capture_logs() as said:
        sealing = asyncio.create_task(keep_sealing(log.pool, settings))
        await until(lambda: {"sealed", "seals_not_copied"} <= {line["event"] for line in said})
        sealing.cancel()
    for key in ("third", "fourth"):
        await create_instance(log.store, key=key)
        with pytest.raises(CopyContradicts, match="Seal 2 in the database differs from that in"):
            await Sealer(log.pool, key=KEY, file=log.file).seal()

    assert log.file.path.read_bytes() == copied
    log.file.path.rename(log.file.path.with_name("evidence.jsonl"))
    await Sealer(log.pool, key=KEY, file=log.file).seal()
    assert [seal.number for seal in log.file.read()] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        ("DELETE FROM command", "ended at 1 when seal 1 was made"),
        ("UPDATE command SET link = sha256('other')", "seal 1 does not match this event"),
        ("UPDATE command SET first_seq = first_seq + 1", "seal 1 does not match this event"),
    ],
)
async def test_a_log_that_contradicts_its_last_seal_is_not_sealed_again(
    log: Log, owner_conn: psycopg.AsyncConnection, edit: str, complaint: str
) -> None:
    await log.sealer.seal()
    await create_instance(log.store, key="second")
    await owner_conn.execute(edit.encode())

    with pytest.raises(LogCorrupted, match=complaint):
        await log.sealer.seal()


async def test_a_seal_edited_to_fit_an_edited_log_is_an_alarm(log: Log, owner_conn: psycopg.AsyncConnection) -> None:
    await log.sealer.seal()
    await create_instance(log.store, key="second")
    await log.sealer.seal()
    await owner_conn.execute("UPDATE command SET link = sha256('other') WHERE lane = (SELECT max(lane) FROM command)")
    await owner_conn.execute(
        "UPDATE seal SET links = overlay(links PLACING sha256('other') FROM 1 + 32 * (SELECT max(lane) FROM command)),"
        " sealed_at = now() WHERE number = 2"
    )

    fresh = Sealer(log.pool, key=KEY)
    for age_min in (timedelta(0), timedelta(hours=1)):
        with pytest.raises(LogCorrupted, match="seal 2, which the next one would follow, is invalid: "):
            await fresh.seal(age_min=age_min)


@pytest.mark.parametrize(
    "edit",
    [
        # The one before it, which is signed, becomes the last.
        "DELETE FROM seal WHERE number = 2",
        "DELETE FROM seal",
        "UPDATE seal SET signature = sha256('') || sha256('') WHERE number = 2",
        (
            "CREATE TABLE other AS SELECT * FROM seal WHERE number < 2; GRANT ALL ON other TO PUBLIC;"
            "DROP TABLE seal; ALTER TABLE other RENAME TO seal"
        ),
    ],
)
async def test_a_seal_removed_or_replaced_after_a_process_saw_it_is_an_alarm(
    log: Log, owner_conn: psycopg.AsyncConnection, edit: str
) -> None:
    await log.sealer.seal()
    await create_instance(log.store, key="second")
    other = Sealer(log.pool, key=KEY)
    await other.seal()
    assert await log.sealer.seal() is None
    await create_instance(log.store, key="third")
    await owner_conn.execute(edit.encode())

    for sealer in (log.sealer, other):
        with pytest.raises(LogCorrupted, match="seal 2 was removed or replaced since it was made"):
            await sealer.seal()


async def test_a_relay_that_runs_across_a_restore_reports_it_once_and_continues_sealing(
    log: Log, database_url: str, services: Services, tmp_path: Path
) -> None:
    settings = Settings(database_url=database_url, seal_key=KEY, seal_interval_s=0.01)
    backup, name = tmp_path / "log.dump", database_url.rpartition("/")[2]
    await log.sealer.seal()
    await asyncio.to_thread(back_up, database_url, "log", backup)
    await create_instance(log.store, key="second")
    with capture_logs() as said:
        sealing = asyncio.create_task(keep_sealing(log.pool, settings))
        await until(lambda: "sealed" in [line["event"] for line in said])

        with psycopg.connect(services.postgres_url.format("postgres"), autocommit=True) as administrator:
            administrator.execute(f"CREATE DATABASE {name}_restored".encode())
            await asyncio.to_thread(restore, f"{database_url}_restored", backup)
            services.drop_database(name)
            administrator.execute(f"ALTER DATABASE {name}_restored RENAME TO {name}".encode())
        await create_instance(log.store, key="another second")
        await until(lambda: [line["event"] for line in said].count("sealed") > 1)
        sealing.cancel()

    events = [line["event"] for line in said]
    assert events.count("seals_of_another_database") == 1
    assert "seal_refused" not in events
    assert [line["number"] for line in said if line["event"] == "sealed"] == [2, 2]


@pytest.mark.parametrize("written_since", ["less", "more"])
async def test_a_sealer_that_runs_across_a_restore_of_the_cluster_continues_sealing(
    own_services: OwnServices, written_since: str
) -> None:
    async with open_store(own_services.database_url) as (store, pool):
        sealer = Sealer(pool, key=KEY)
        await create_instance(store)
        await sealer.seal()
        async with own_services.stopped_postgres() as data:
            backup = data.with_name("backup")
            copy_files(data, backup)
        await create_instance(store, key="second")
        if written_since == "less":
            await as_owner(own_services, "SELECT pg_switch_wal()")
        await sealer.seal()

        async with own_services.stopped_postgres() as data:
            shutil.rmtree(data)
            copy_files(backup, data)
            if written_since == "more":
                recover(data)
        if written_since == "more":
            await as_owner(own_services, "SELECT pg_switch_wal()")
        await create_instance(store, key="another second")
        with capture_logs() as said:
            seal = await sealer.seal()
        assert seal is not None
        assert (seal.number, [line["event"] for line in said]) == (2, ["seals_of_another_database"])

        # No restart explains that a seal is gone.
        await own_services.restart("postgres")
        await as_owner(own_services, "DELETE FROM seal WHERE number = 2")
        with pytest.raises(LogCorrupted, match="seal 2 was removed or replaced since it was made"):
            await sealer.seal()


async def as_owner(own_services: OwnServices, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(own_services.database_url, autocommit=True) as connection:
        await connection.execute(statement.encode())


def copy_files(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


def recover(data: Path) -> None:
    """Have PostgreSQL begin another timeline before it answers, as behind every recovery from an archive."""
    with (data / "postgresql.auto.conf").open("a") as settings:
        settings.write("restore_command = 'false'\nhot_standby = off\n")
    copy_files(data / "PG_VERSION", data / "recovery.signal")


async def test_a_relay_with_a_seal_key_seals_and_one_without_does_not(
    log: Log, database_url: str, tmp_path: Path
) -> None:
    file = SealFile(tmp_path / "relay.jsonl")
    settings = Settings(database_url=database_url, seal_key=KEY, seal_file=file.path, seal_interval_s=0.01)

    sealing = asyncio.create_task(keep_sealing(log.pool, settings))
    await until(lambda: file.last_number() == 1)
    await create_instance(log.store, key="second")
    await until(lambda: file.last_number() == 2)
    sealing.cancel()

    await keep_sealing(log.pool, Settings(database_url=database_url))


@pytest.mark.parametrize(
    "edit", ["UPDATE seal SET sealed_at = 'infinity'", "UPDATE seal SET number = 9223372036854775807"]
)
async def test_a_seal_that_cannot_be_continued_is_logged_as_an_error_until_it_is_repaired(
    log: Log, owner_conn: psycopg.AsyncConnection, database_url: str, edit: str
) -> None:
    made = await log.sealer.seal()
    assert made is not None
    await owner_conn.execute(edit.encode())
    await create_instance(log.store, key="second")
    settings = Settings(database_url=database_url, seal_key=KEY, seal_file=log.file.path, seal_interval_s=0.01)

    with capture_logs() as said:
        sealing = asyncio.create_task(keep_sealing(log.pool, settings))
        await until(lambda: sealing.done() or len(said) > 1)
    assert {line["log_level"] for line in said} == {"error"}
    await owner_conn.execute("UPDATE seal SET sealed_at = %s, number = %s", (made.sealed_at, made.number))

    await until(lambda: log.file.last_number() == 2)
    sealing.cancel()


async def test_a_copy_that_cannot_be_written_is_logged_as_a_warning_and_completed_later(
    log: Log, database_url: str, tmp_path: Path
) -> None:
    file = SealFile(tmp_path / "not mounted" / "relay.jsonl")
    settings = Settings(database_url=database_url, seal_key=KEY, seal_file=file.path, seal_interval_s=0.01)

    with capture_logs() as said:
        sealing = asyncio.create_task(keep_sealing(log.pool, settings))
        await until(lambda: sealing.done() or len(said) > 1)
    file.path.parent.mkdir()

    await until(lambda: sealing.done() or file.last_number() == 1)
    sealing.cancel()
    assert {(line["event"], line["log_level"]) for line in said} == {("sealing_waits", "warning")}


@pytest.mark.parametrize("statement", ["UPDATE seal SET number = 2", "DELETE FROM seal", "TRUNCATE seal"])
def test_the_app_cannot_change_or_remove_seals(database_url: str, statement: str) -> None:
    as_the_app = conninfo(database_url, role="hydracore_app", application="test")

    with psycopg.connect(as_the_app) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement.encode())
