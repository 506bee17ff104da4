"""Parts and commands that find no usable database say so in one line, and stop at a signal."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import LiteralString
from uuid import uuid4

import psycopg
import pytest
import structlog
from click.testing import CliRunner
from psycopg import sql
from psycopg.conninfo import make_conninfo

from hydracore.cli import main
from hydracore.db import migrations, pool, readiness
from hydracore.db.pool import open_pool
from hydracore.db.readiness import DatabaseUnreachable, NotAllowed, NotMigrated
from hydracore.embedded.ports import free_port
from hydracore.settings import variable_name
from tests.command import Command
from tests.pooler import needs_pooler, pooled
from tests.program import Program
from tests.services import OwnServices
from tests.waiting import PATIENCE_S, until

NOT_MIGRATED = "the database is not migrated: run hydracore db migrate"
NO_LOG = "this database has no HydraCore log: check HYDRACORE_DATABASE_URL"


def environ(database_url: str) -> dict[str, str]:
    settings = {
        "database_url": database_url,
        "redis_url": f"redis://127.0.0.1:{free_port()}/0",
        "master_key": "a" * 43,
        "jwt_secret": "a" * 32,
        "public_url": "http://127.0.0.1:9",
        "api_port": str(free_port()),
        "log_level": "error",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HYDRACORE_")}
    return inherited | {variable_name(name): value for name, value in settings.items()}


@pytest.mark.parametrize("part", ["api", "relay", "worker"])
def test_a_part_started_before_the_migration_exits_with_one_line(part: str, empty_url: str, tmp_path: Path) -> None:
    program = Program(part, environ=environ(empty_url), log=tmp_path / "log")

    program.start()

    assert program.wait(PATIENCE_S) == 3
    assert program.output() == f"hydracore: {NOT_MIGRATED}\n"


@pytest.mark.parametrize(
    "words",
    [
        "audit verify",
        "audit export --tenant acme --output x",
        "projections rebuild --all",
        "fleet",
        "sweep",
        "projections list",
        "api-key list --tenant acme",
        # A migration would not help here: there is nothing to copy.
        "db backup x",
        "db backup --keys x",
    ],
)
def test_a_command_on_a_database_that_is_not_migrated_fails_with_one_line(
    words: str, empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    done = CliRunner().invoke(main, words.split(), env=environ(empty_url))

    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.partition(": ")[2] == f"{NO_LOG if words.startswith('db') else NOT_MIGRATED}\n"
    assert list(tmp_path.iterdir()) == [], "no output was begun"


def test_a_start_refuses_a_database_that_lacks_a_migration_but_accepts_a_newer_one(database_url: str) -> None:
    def look() -> None:
        pool.check_database(database_url, role="hydracore_app", application="test")

    newest = migrations()[-1][0]
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("INSERT INTO migration (name, digest) VALUES ('9999_next', '')")
        look()

        owner.execute("DELETE FROM migration WHERE name = %s", (newest,))
        with pytest.raises(NotMigrated, match=rf"missing: {newest}\): run hydracore db migrate"):
            look()

        owner.execute("REVOKE SELECT ON migration FROM hydracore_app")
        with pytest.raises(NotMigrated, match=NOT_MIGRATED):
            look()


def test_a_role_without_access_to_the_migration_table_is_refused_with_the_reason(database_url: str) -> None:
    role = f"auditor_{uuid4().hex}"
    with psycopg.connect(database_url, autocommit=True) as owner:

        def do(statement: LiteralString) -> None:
            owner.execute(sql.SQL(statement).format(sql.Identifier(role)))

        do("CREATE ROLE {0}")
        do("GRANT SELECT ON event, command, lane_head TO {0}")
        try:
            with pytest.raises(NotAllowed, match=f"{role} may not read the table migration: grant it"):
                pool.check_database(database_url, role=role, application="test")

            do("GRANT SELECT ON migration TO {0}")
            pool.check_database(database_url, role=role, application="test")
        finally:
            do("DROP OWNED BY {0}")
            do("DROP ROLE {0}")


def test_a_login_that_may_not_act_as_the_app_s_role_is_refused_with_the_grant_it_needs(database_url: str) -> None:
    """Roles belong to the cluster: after a restore into another one, the owner of the database may not be in the app's role."""
    login = f"owner_{uuid4().hex}"
    with psycopg.connect(database_url, autocommit=True) as owner:

        def do(statement: LiteralString) -> None:
            owner.execute(sql.SQL(statement).format(sql.Identifier(login)))

        do("CREATE ROLE {0} LOGIN PASSWORD 'secret'")
        do("GRANT SELECT ON migration TO {0}")
        try:
            url = make_conninfo(database_url, user=login, password="secret")
            with pytest.raises(NotAllowed, match=f"GRANT hydracore_app TO {login}"):
                pool.check_database(url, role="hydracore_app", application="test")

            do("GRANT hydracore_app TO {0}")
            pool.check_database(url, role="hydracore_app", application="test")
        finally:
            do("DROP OWNED BY {0}")
            do("DROP ROLE {0}")


def test_on_an_empty_database_a_missing_role_is_reported_as_not_migrated(empty_url: str) -> None:
    with pytest.raises(NotMigrated):
        pool.check_database(empty_url, role="not_there_yet", application="test")


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda url: make_conninfo(url, password="wrong"), id="password"),
        pytest.param(lambda url: make_conninfo(url, dbname="wrong"), id="database"),
    ],
)
async def test_permanent_connection_errors_are_not_retried(
    wrong: Callable[[str], str], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "START_S_MAX", 1e9)

    with pytest.raises(DatabaseUnreachable, match="FATAL"):
        async with open_pool(wrong(database_url), role="", application="test", size=1):
            pass


async def test_a_role_that_does_not_exist_is_reported(database_url: str) -> None:
    with pytest.raises(DatabaseUnreachable, match='role "nobody" does not exist'):
        async with open_pool(database_url, role="nobody", application="test", size=1):
            pass


async def test_a_database_that_is_starting_is_waited_for(own_services: OwnServices) -> None:
    async def opened() -> None:
        async with open_pool(own_services.database_url, role="hydracore_app", application="test", size=1):
            pass

    with structlog.testing.capture_logs() as told:
        async with own_services.stopped_postgres():
            opening = asyncio.create_task(opened())
            await until(lambda: told)

        await opening

    assert [line["event"] for line in told] == ["database_not_reached"]


async def test_a_database_that_accepts_connections_but_does_not_answer_is_waited_for(
    database_url: str, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness._CheckConnection, "answer_s_max", 0.2)

    async def opened() -> None:
        async with open_pool(database_url, role="hydracore_app", application="test", size=1):
            pass

    with structlog.testing.capture_logs() as told:
        await owner_conn.execute("BEGIN; LOCK TABLE migration IN ACCESS EXCLUSIVE MODE")
        opening = asyncio.create_task(opened())
        await until(lambda: told)
        await owner_conn.execute("ROLLBACK")
        await opening

    assert {line["event"] for line in told} == {"database_not_reached"}


@pytest.mark.parametrize("words", ["sorry, too many clients already", "server login has been failing, try again later"])
def test_connection_errors_that_may_pass_are_not_permanent(words: str) -> None:
    assert not readiness._is_permanent(psycopg.OperationalError(f"connection failed: FATAL:  {words}"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("part", ["relay", "worker"])
async def test_a_part_that_waits_for_its_database_is_stopped_by_a_signal(
    part: str, number: signal.Signals, tmp_path: Path
) -> None:
    nowhere = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    program = Program(part, environ=environ(nowhere), log=tmp_path / "log")
    program.start(log_level="warning")
    await until(lambda: program.has_logged("database_not_reached"))

    program.send(number)

    assert await asyncio.to_thread(program.wait, PATIENCE_S) == 0
    assert "hydracore: " not in program.output()


@needs_pooler
async def test_a_worker_behind_a_transaction_pooler_does_not_start(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    worker = Program("worker", environ=environ(database_url), log=tmp_path / "log")
    async with pooled(database_url, prepared=False) as url:
        worker.start(database_url=url, database_role="", database_prepared="false", redis_url=redis_url)

        status = await asyncio.to_thread(worker.wait, PATIENCE_S)

    assert status == 3, worker.output()
    assert re.fullmatch(r"hydracore: .* leads to a pooler in transaction mode.*\n", worker.output())


async def test_a_worker_without_prepared_statements_starts_on_a_direct_connection(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    worker = Program("worker", environ=environ(database_url), log=tmp_path / "log")
    worker.start(log_level="info", database_prepared="false", redis_url=redis_url)
    await until(lambda: worker.has_logged("worker_started"))

    worker.send(signal.SIGTERM)

    assert await asyncio.to_thread(worker.wait, PATIENCE_S) == 0


async def test_a_worker_warns_if_agents_would_get_their_secrets_unencrypted(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    worker = Program("worker", environ=environ(database_url), log=tmp_path / "log")
    worker.start(log_level="warning", redis_url=redis_url, public_url="http://control.example")
    await until(lambda: worker.has_logged("public_url_open"))

    worker.send(signal.SIGTERM)

    assert await asyncio.to_thread(worker.wait, PATIENCE_S) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("part", ["relay", "worker"])
async def test_a_part_that_has_just_started_stops_at_a_signal(
    part: str, number: signal.Signals, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    program = Program(part, environ=environ(database_url), log=tmp_path / "log")
    program.start(log_level="info", redis_url=redis_url)
    # At this moment the relay is connecting to Redis.
    await until(lambda: program.has_logged(f"{part}_started"), poll_s=0.002)

    try:
        program.send(number)

        assert await asyncio.to_thread(program.wait, PATIENCE_S) == 0
    finally:
        program.kill()
    assert "Traceback" not in program.output()


@pytest.mark.parametrize("words", ["audit verify", "sweep --dry-run", "fleet", "db migrate", "db backup x"])
def test_ctrl_c_interrupts_a_command_while_the_database_server_does_not_answer(words: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nowhere = f"postgresql://nobody@127.0.0.1:{server.getsockname()[1]}/nothing?connect_timeout=3600"
        with Command.started(*words.split(), env=environ(nowhere), cwd=tmp_path) as command:
            connection, _ = server.accept()
            with connection:
                command.signal(signal.SIGINT)
                ended = command.wait()

    assert (ended.status, ended.stderr) == (130, "hydracore: interrupted\n")
    assert list(tmp_path.iterdir()) == []
