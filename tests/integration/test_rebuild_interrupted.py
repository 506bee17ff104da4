"""A rebuild that is stopped or killed leaves no process that continues it, and `prune` waits for no session for long."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from hydracore.signals import INTERRUPTED
from projections import generations, rebuild
from projections.errors import GenerationInUse
from projections.instance import InstanceProjection
from projections.rebuild import prune
from tests.cloudsim_fixtures import REPOSITORY
from tests.command import Command
from tests.forked import Forked
from tests.rebuilding import rebuild_here, write_instances
from tests.store_commands import open_store
from tests.waiting import PATIENCE_S, until

LANES = "SELECT FROM projection_lane WHERE folded_at IS NULL"
UNCLAIMED = "SELECT FROM projection_lane WHERE folded_at IS NULL FOR UPDATE SKIP LOCKED"

#: Ends the sessions of the processes that fold, once one of them waits for the log.
END_FOLDING = """
  WITH sessions AS MATERIALIZED (
       SELECT pid, bool_or(wait_event_type = 'Lock') OVER () AS is_waiting
         FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'hydracore-projections')
SELECT pg_terminate_backend(pid) FROM sessions WHERE is_waiting
"""

#: Ends the session of a rebuild that waits for a table.
END_WAITING = """
SELECT pg_terminate_backend(pid)
  FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'hydracore-rebuild' AND wait_event_type = 'Lock'
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_folding_processes_end_with_a_stopped_or_killed_rebuild(
    database_url: str, owner_conn: psycopg.AsyncConnection, tmp_path: Path, number: signal.Signals
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)

    async def claimed() -> int:
        lanes, unclaimed = [(await owner_conn.execute(query)).rowcount for query in (LANES, UNCLAIMED)]
        return lanes - unclaimed

    async def released() -> bool:
        return not await claimed()

    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute("LOCK TABLE event IN ACCESS EXCLUSIVE MODE")
        process = Forked(
            *("hydracore", "projections", "rebuild", "instance", "--workers", "1"),
            cwd=REPOSITORY,
            env=dict(os.environ) | {"HYDRACORE_DATABASE_URL": database_url},
            stdout=tmp_path / "output",
            stderr=tmp_path / "errors",
        )
        await until(claimed)
        process.signal(number)

        status = await asyncio.to_thread(process.wait, PATIENCE_S)
        await until(released)

    assert status == (-number if number == signal.SIGKILL else INTERRUPTED)
    if number != signal.SIGKILL:
        assert (tmp_path / "errors").read_text() == "hydracore: interrupted\n"


async def test_a_fold_whose_sessions_the_server_ends_is_reported_in_one_line(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)
    env = os.environ | {"HYDRACORE_DATABASE_URL": database_url}

    async def end_folding() -> bool:
        return (await owner_conn.execute(END_FOLDING)).rowcount > 0

    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute("LOCK TABLE event IN ACCESS EXCLUSIVE MODE")
        with Command.started("projections", "rebuild", "instance", "--workers", "1", env=env) as command:
            await until(end_folding)
            ended = await command.ended()

    assert (ended.status, ended.stdout) == (3, "")
    assert ended.stderr == "hydracore: Folding the lanes of instance failed: AdminShutdown (57P01)\n"


async def test_a_cancelled_comparison_does_not_wait_for_the_tables_to_be_analyzed(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    build = await generations.begin(owner_conn, InstanceProjection())
    build = await generations.index(owner_conn, InstanceProjection(), build)

    async def waits() -> bool:
        query = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'ANALYZE%'"
        return (await owner_conn.execute(query)).rowcount > 0

    async def compare_for_ever() -> None:
        async with rebuild._analyzing(database_url, build):
            await asyncio.Event().wait()

    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        table = sql.Identifier(build.schema, "instance")
        await holder.execute(sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(table))
        comparing = asyncio.create_task(compare_for_ever())
        await until(waits)
        comparing.cancel()

        await asyncio.wait((comparing,), timeout=PATIENCE_S)
        assert comparing.cancelled()
        assert not await waits()


async def test_a_comparison_whose_session_is_terminated_raises_the_server_s_error(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async def end_waiting() -> bool:
        return (await owner_conn.execute(END_WAITING)).rowcount > 0

    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute("LOCK TABLE instance IN ACCESS EXCLUSIVE MODE")
        rebuilding = asyncio.create_task(rebuild_here(database_url, InstanceProjection()))
        await until(end_waiting)

        with pytest.raises(psycopg.errors.AdminShutdown):
            await rebuilding


async def test_pruning_waits_for_a_fold_but_no_longer_than_its_limit(
    database_url: str, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)
    build = await generations.begin(owner_conn, InstanceProjection())

    async def waits() -> bool:
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return (await owner_conn.execute(waiting)).rowcount > 0

    async with await psycopg.AsyncConnection.connect(database_url) as folder:
        await folder.execute(UNCLAIMED)
        with monkeypatch.context() as patched:
            patched.setattr("projections.generations.DROP_S_MAX", 0.01)
            with pytest.raises(GenerationInUse, match="is still in use by another session"):
                await prune(database_url, "instance")

        pruning = asyncio.create_task(prune(database_url, "instance"))
        await until(waits)
        tables = sql.SQL(", ").join(sql.Identifier(build.schema, table) for table in build.tables)
        await folder.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(tables))
        await folder.commit()

        assert build in await pruning
