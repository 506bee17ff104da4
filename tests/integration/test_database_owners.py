"""Owners that are no superusers, as in managed databases: they must be able to act as the role that they create."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from hydracore import db
from hydracore.cli import main
from hydracore.db import migrate, migrations
from tests.customers import World, world_fixture
from tests.services import OwnServices

__all__ = ["world_fixture"]

#: A database owned by a user without superuser rights, in a cluster without the application's role.
ANEW = (
    "DROP DATABASE hydracore WITH (FORCE)",
    "DROP ROLE hydracore_app",
    "CREATE ROLE creator LOGIN PASSWORD 'creator' CREATEROLE",
    "CREATE DATABASE hydracore OWNER creator",
)
#: The whole database as one file.
SCHEMA = Path(__file__).parents[2] / "schema.sql"
#: Whether the current user may act as the role.
ACTING = "SELECT pg_has_role(current_user, 'hydracore_app', 'SET')"
#: Which of these roles exist.
EXISTING = "SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)"


def apply_all_migrations(url: str) -> None:
    migrate(url)


def apply_the_schema_file(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SCHEMA.read_bytes())


@pytest.mark.parametrize(
    "make", [apply_all_migrations, apply_the_schema_file], ids=["all migrations", "the schema file"]
)
async def test_an_owner_without_superuser_rights_can_act_as_the_role_it_created(
    own_services: OwnServices, tmp_path: Path, make: Callable[[str], None]
) -> None:
    place = conninfo_to_dict(own_services.database_url)
    url = f"postgresql://creator:creator@{place['host']}:{place['port']}/hydracore"
    with psycopg.connect(own_services.database_url, dbname="postgres", autocommit=True) as superuser:
        for statement in ANEW:
            superuser.execute(statement.encode())
    make(url)

    environ = {"HYDRACORE_DATABASE_URL": url, "HYDRACORE_ERASURE_FILE": str(tmp_path / "erasures.jsonl")}
    done = await asyncio.to_thread(CliRunner().invoke, main, ["db", "migrate"], env=environ)

    assert (done.exit_code, done.stdout) == (0, "nothing to apply\n"), done.output


@contextmanager
def owned_by_a_member(url: str, *, options: LiteralString) -> Generator[str]:
    """The URL of an empty database's new owner, who has been given the role with these options."""
    owner = f"owner_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as superuser:

        def do(statement: LiteralString) -> None:
            superuser.execute(sql.SQL(statement).format(sql.Identifier(owner)))

        do("CREATE ROLE {} LOGIN PASSWORD 'owner'")
        do("GRANT hydracore_app TO {} WITH " + options)
        do("ALTER SCHEMA public OWNER TO {}")
        try:
            yield make_conninfo(url, user=owner, password="owner")
        finally:
            do("REASSIGN OWNED BY {} TO CURRENT_USER")
            do("DROP OWNED BY {}")
            do("DROP ROLE {}")


@pytest.mark.parametrize(
    ("options", "may_act"),
    [("ADMIN TRUE, INHERIT FALSE, SET FALSE", True), ("ADMIN FALSE, INHERIT TRUE, SET FALSE", False)],
    ids=["an owner that may grant it", "an owner that may not"],
)
def test_a_later_migration_lets_the_owner_act_as_the_role_only_if_it_may_grant_the_role(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, options: LiteralString, *, may_act: bool
) -> None:
    everything = migrations()
    with owned_by_a_member(empty_url, options=options) as url:
        monkeypatch.setattr(db, "migrations", lambda: everything[:16])
        migrate(url)
        monkeypatch.setattr(db, "migrations", lambda: everything)

        assert migrate(url) == [name for name, _ in everything[16:]]

        with psycopg.connect(url) as connection:
            assert connection.execute(ACTING).fetchone() == (may_act,)


async def test_a_restore_is_refused_with_statements_that_create_all_missing_roles(
    world: World, owner_conn: psycopg.AsyncConnection, empty_url: str, tmp_path: Path
) -> None:
    names = sorted(f"{name}_{uuid4().hex}" for name in ("auditor", 'Eve "the" guest', "heir"))
    roles = auditor, guest, heir = [sql.Identifier(name) for name in names]
    for role in roles:
        await owner_conn.execute(sql.SQL("CREATE ROLE {}").format(role))
    await owner_conn.execute(sql.SQL("GRANT SELECT ON event TO {} WITH GRANT OPTION").format(auditor))
    await owner_conn.execute(sql.SQL("GRANT SELECT (name) ON migration TO {}").format(guest))
    await owner_conn.execute(sql.SQL("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {}").format(heir))
    path = tmp_path / "log.dump"
    await asyncio.to_thread(world.run, "db", "backup", str(path))
    await drop(owner_conn, roles)

    async def restore() -> Result:
        return await asyncio.to_thread(world.run, "db", "restore", str(path), HYDRACORE_DATABASE_URL=empty_url)

    refused = await restore()
    line = refused.stderr.splitlines()[-1]
    _, _, statements = line.partition("grants privileges to roles that do not exist. Create them first: ")
    await owner_conn.execute(statements.encode())
    there = await (await owner_conn.execute(EXISTING, (names,))).fetchall()
    done = await restore()
    async with await psycopg.AsyncConnection.connect(empty_url, autocommit=True) as connection:
        await drop(connection, roles)

    assert (refused.exit_code, statements.count("CREATE ROLE"), sorted(name for (name,) in there)) == (2, 3, names)
    assert done.exit_code == 0, done.output


async def drop(connection: psycopg.AsyncConnection, roles: Sequence[sql.Identifier]) -> None:
    for role in roles:
        await connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        await connection.execute(sql.SQL("DROP ROLE {}").format(role))
