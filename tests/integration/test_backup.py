"""A backup is written completely or not at all, and leaves no stray copy of the customers' keys."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from hydracore.audit.atomic_file import atomic_file
from hydracore.cli import main
from hydracore.db import migrations
from tests.cloudsim_fixtures import REPOSITORY
from tests.customers import LOCK_WAITS, World, world_fixture
from tests.forked import Forked
from tests.waiting import PATIENCE_S, until

__all__ = ["world_fixture"]

_DUMPS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pg_dump'"


@asynccontextmanager
async def held_up(world: World, owner_conn: psycopg.AsyncConnection, *words: str, log: Path) -> AsyncGenerator[Forked]:
    """A command that waits for a lock. Afterwards the lock is released, and its `pg_dump` has ended."""
    async with await psycopg.AsyncConnection.connect(world.url) as holder:
        await holder.execute("LOCK TABLE customer_key, event IN ACCESS EXCLUSIVE MODE")
        env = os.environ | world.environ
        process = Forked("hydracore", *words, cwd=REPOSITORY, env=env, stdout=log, stderr=log)

        async def waits() -> bool:
            return (await (await owner_conn.execute(LOCK_WAITS)).fetchone()) == (1,)

        await until(waits)
        yield process

    async def ended() -> bool:
        return (await (await owner_conn.execute(_DUMPS)).fetchone()) == (0,)

    await until(ended)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGTERM, "db backup --keys"),
        (signal.SIGHUP, "db backup --keys"),
        (signal.SIGTERM, "audit export --tenant acme --output"),
    ],
)
async def test_a_backup_or_export_that_a_signal_stops_leaves_no_file(
    world: World, owner_conn: psycopg.AsyncConnection, tmp_path: Path, number: signal.Signals, words: str
) -> None:
    folder, log = tmp_path / "backups", tmp_path / "log"
    folder.mkdir()

    async with held_up(world, owner_conn, *words.split(), str(folder / "keys.dump"), log=log) as process:
        process.signal(number)
        status = process.wait(PATIENCE_S)

    assert (status, log.read_text()) == (130, "hydracore: interrupted\n")
    assert not list(folder.iterdir())


async def test_a_killed_backup_does_not_continue_and_the_next_one_removes_its_remains(
    world: World, owner_conn: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()

    async with held_up(
        world, owner_conn, "db", "backup", "--keys", str(folder / "monday.dump"), log=tmp_path / "log"
    ) as process:
        process.kill()
    (left,) = folder.iterdir()
    size_bytes = left.stat().st_size
    # A directory with a similar name is not in the way.
    planted = left.with_name(f".planted{left.suffix}")
    planted.mkdir()
    with atomic_file(folder / "in the making", replace=False) as draft:
        draft.write_text("whole")
        done = await asyncio.to_thread(world.run, "db", "backup", "--keys", str(folder / "tuesday.dump"))

    assert size_bytes == 0, "pg_dump went on"
    assert done.exit_code == 0, done.output
    assert {each.name for each in folder.iterdir()} == {"in the making", "tuesday.dump", planted.name}


@pytest.mark.parametrize("words", ["db backup --force", "audit export --tenant acme --force --output"])
async def test_a_backup_or_export_to_a_pipe_is_refused_even_with_force(
    world: World, tmp_path: Path, words: str
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    done = await asyncio.to_thread(world.run, *words.split(), str(pipe))

    assert (done.exit_code, stat.S_ISFIFO(pipe.stat().st_mode)) == (2, True)
    assert f"{pipe} is not a regular file" in done.output


def test_a_database_of_an_older_release_can_be_backed_up_before_its_migration(
    database_url: str, tmp_path: Path
) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("DELETE FROM migration WHERE name = %s", (migrations()[-1][0],))
    environ = {"HYDRACORE_DATABASE_URL": database_url}

    for words in ([], ["--keys"]):
        path = tmp_path / f"{len(words)}.dump"
        done = CliRunner().invoke(main, ["db", "backup", str(path), *words], env=environ)

        assert (done.exit_code, path.exists()) == (0, True), done.output


# Other programs have a table of this name, too.
@pytest.mark.parametrize("columns", [b"name", b"number"])
def test_a_backup_of_another_program_s_database_is_refused(empty_url: str, tmp_path: Path, columns: bytes) -> None:
    with psycopg.connect(empty_url, autocommit=True) as owner:
        owner.execute(b"CREATE TABLE migration (" + columns + b" text); INSERT INTO migration VALUES ('0001_users')")

    done = CliRunner().invoke(
        main, ["db", "backup", str(tmp_path / "log.dump")], env={"HYDRACORE_DATABASE_URL": empty_url}
    )

    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == "hydracore: this database has no HydraCore log: check HYDRACORE_DATABASE_URL\n"
