"""Settings of the database for the input and output format of values change nothing."""

from __future__ import annotations

import asyncio

import pytest
from psycopg import AsyncConnection, sql

from projections.fleet import Fleet
from projections.instance import InstanceProjection
from tests import lifecycle
from tests.customers import World, world_fixture
from tests.log_check import check_log
from tests.rebuilding import dry_run_here, follow_all, rebuild_here, run_projections_command
from tests.store_commands import open_store, origin
from workers.locks import InstanceLocks
from workers.work_schedule import WorkSchedule

__all__ = ["world_fixture"]

ADA = lifecycle.instance_id()

FORMATS = {
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "America/St_Johns",
    "array_nulls": "off",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "quote_all_identifiers": "on",
    "standard_conforming_strings": "off",
    "transform_null_equals": "on",
}


COMMANDS = (
    *("audit verify", "audit show --tenant acme", "projections list", "projections status", "fleet", "activity acme"),
    *("api-key create --tenant acme --name \N{GREEK CAPITAL LETTER OMEGA}", "api-key list --tenant acme"),
)


@pytest.fixture(params=FORMATS)
async def database_with_formats(request: pytest.FixtureRequest, database_url: str, owner_conn: AsyncConnection) -> str:
    await set_format(owner_conn, request.param, FORMATS[request.param])
    return database_url


async def set_format(connection: AsyncConnection, name: str, value: str) -> None:
    """Set this for the database, from the next session on."""
    alter = sql.SQL("ALTER DATABASE {} SET {} = {}")
    database = sql.Identifier(connection.info.dbname)
    await connection.execute(alter.format(database, sql.Identifier(name), sql.Literal(value)))


async def test_an_instance_s_whole_life_works_whatever_formats_the_database_sets(
    database_with_formats: str, owner_conn: AsyncConnection
) -> None:
    async with open_store(database_with_formats) as (store, pool), open_store(database_with_formats) as (other, _):
        for command in lifecycle.DELETED:
            await store.execute(ADA, command, origin())
        state = await other.load(ADA)
        assert state is not None
        assert (state, state.status) == (await store.load(ADA), "deleted")
        await follow_all(pool)
        assert await WorkSchedule(pool).claim_due() == []
        locks = InstanceLocks(database_with_formats, role="hydracore_app")
        async with locks.hold(ADA) as hold:
            assert hold is not None
        assert hold.version_after == state.version
        await locks.close()

    for projection in (InstanceProjection(), Fleet()):
        assert (await rebuild_here(database_with_formats, projection)).drifted == 0
        assert (await dry_run_here(database_with_formats, projection)).drifted == 0
    for look in ("list", "status"):
        assert (await run_projections_command(database_with_formats, look)).exit_code == 0
    assert (await check_log(owner_conn)).versions == {ADA: state.version}


@pytest.mark.parametrize("role", ["hydracore_app", ""])
async def test_commands_work_whatever_formats_the_database_sets(
    world: World, owner_conn: AsyncConnection, role: str
) -> None:
    await follow_all(world.pool)
    for name, value in {**FORMATS, "client_encoding": "LATIN1"}.items():
        await set_format(owner_conn, name, value)

    for words in COMMANDS:
        done = await asyncio.to_thread(world.run, *words.split(), HYDRACORE_DATABASE_ROLE=role)
        assert (done.exit_code, done.stderr) == (0, ""), (words, done.output)
