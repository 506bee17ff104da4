"""Writers are blocked for no longer than promised, whatever happens to the process that swaps."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from events.pacing import Pace
from projections import generations, swap
from projections.candidate import Candidate
from projections.errors import RebuildLockLost, SwapUnknown, WritersNotStopped
from projections.instance import InstanceProjection
from projections.rebuild import prune, rollback
from projections.rebuild_lock import connect
from projections.swap import STOPPED_S_MAX
from tests import lifecycle
from tests.command import Command
from tests.rebuilding import dry_run_here, rebuild_here, write_instances
from tests.store_commands import open_store, origin
from tests.waiting import until

#: Slows down two of the swap's last statements, neither so much that it times out, and turns off the timeout of the whole.
SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('transaction_timeout', '0', true);
    PERFORM pg_sleep(0.15);
    RETURN NULL;
END $$;
CREATE TRIGGER slow AFTER UPDATE ON projection_generation FOR EACH STATEMENT EXECUTE FUNCTION slow()
"""

#: Keeps an append from its commit, with its lane locked, for as long as another session has this lock.
HOLD = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1);
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON command DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold()
"""
HELD = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

#: A session of this database that waits for the lock of a table.
TABLE_AWAITED = """
SELECT FROM pg_locks l
  JOIN pg_database d ON d.oid = l.database
 WHERE d.datname = current_database() AND l.locktype = 'relation' AND NOT l.granted
"""

#: No room for what says which generation is live, as often as that is written.
FULL = """
CREATE SEQUENCE tries;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('tries');
    RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full';
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON projection FOR EACH ROW EXECUTE FUNCTION refuse()
"""

#: Longer than any test.
LONG_S = 600.0

#: The state of the session that swaps.
STATE = """
SELECT coalesce(wait_event_type, ''), state
  FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'hydracore-rebuild' AND query ~ 'lane_head' AND query ~ 'UPDATE'
"""

#: Ends the session with the rebuild lock.
END_LOCK = """
SELECT pg_terminate_backend(a.pid, 5000)
  FROM pg_stat_activity a
  JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'advisory'
 WHERE a.datname = current_database() AND a.application_name = 'hydracore-rebuild'
"""


async def test_a_swap_that_took_too_long_is_not_committed_even_if_no_timeout_ended_it(
    database_url: str, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.swap.TRIES_MAX", 2)
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)
    await owner_conn.execute(SLOW)

    with pytest.raises(WritersNotStopped):
        await rebuild_here(database_url, InstanceProjection())

    live = await generations.live_generation(owner_conn, "instance")
    assert live is not None
    assert live.number == 1
    await owner_conn.execute("DROP FUNCTION slow CASCADE")
    report = await rebuild_here(database_url, InstanceProjection())
    assert (report.resumed, report.generation) == (True, 2)
    assert report.stopped_s is not None
    assert report.stopped_s <= STOPPED_S_MAX


async def test_an_append_that_commits_while_the_swap_waits_for_its_lane_is_included(
    database_url: str, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("projections.swap.WAIT_S_MAX", "projections.swap.STOPPED_S_MAX"):
        monkeypatch.setattr(limit, LONG_S)
    # The append keeps its lane: between two attempts of the append, the swap would not have to wait.
    for limit in ("events.committer.LATE_AFTER_S", "events.batch.TRANSACTION_S_MAX"):
        monkeypatch.setattr(limit, LONG_S)
    async with (
        open_store(database_url) as (store, _),
        await psycopg.AsyncConnection.connect(database_url) as holder,
    ):
        ids = await write_instances(store, count=4)
        await owner_conn.execute(HOLD)
        await holder.execute("SELECT pg_advisory_xact_lock(1)")
        appending = asyncio.create_task(store.execute(ids[0], lifecycle.configure(agent_name="Eve"), origin()))
        await until(lambda: one(owner_conn, HELD))
        rebuilding = asyncio.create_task(rebuild_here(database_url, InstanceProjection()))
        await until(lambda: in_state(owner_conn, "Lock", "active"))
        await holder.rollback()

        await appending
        report = await rebuilding

    assert (report.swapped, report.drifted) == (True, 0)
    assert await one(owner_conn, "SELECT count(*) FROM instance WHERE agent_name = 'Eve'") == 1


async def one(connection: psycopg.AsyncConnection, query: LiteralString) -> int:
    ((count,),) = await (await connection.execute(query)).fetchall()
    return count


def end_each_session_after_its_commit(
    monkeypatch: pytest.MonkeyPatch, ender: psycopg.AsyncConnection, first: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Have the server end each session that swaps right after its commit, and after `first`."""
    move = swap._exchange_tables

    async def move_and_end(connection: psycopg.AsyncConnection, candidate: Candidate) -> timedelta:
        stopped = await move(connection, candidate)
        if first is not None:
            await first()
        await ender.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        return stopped

    monkeypatch.setattr(swap, "_exchange_tables", move_and_end)


@pytest.mark.parametrize("tries_max", [50, 1], ids=["in one of several attempts", "in the last attempt"])
async def test_a_swap_whose_session_ends_right_after_its_commit_is_reported_as_made(
    database_url: str, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch, tries_max: int
) -> None:
    monkeypatch.setattr("projections.swap.TRIES_MAX", tries_max)
    end_each_session_after_its_commit(monkeypatch, owner_conn)
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)

    report = await rebuild_here(database_url, InstanceProjection())

    assert (report.generation, report.tries, report.stopped_s) == (2, 1, STOPPED_S_MAX)
    live = await generations.live_generation(owner_conn, "instance")
    assert live is not None
    assert live.number == 2


async def test_a_swap_whose_outcome_cannot_be_looked_up_is_reported_as_unknown(
    database_url: str, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)

    async def allow_connections(allowed: LiteralString) -> None:
        """Allow or refuse new connections, which a server that is down refuses as well."""
        statement = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        elsewhere = make_conninfo(database_url, dbname="postgres")
        async with await psycopg.AsyncConnection.connect(elsewhere, autocommit=True) as connection:
            await connection.execute(statement.format(sql.Identifier(owner_conn.info.dbname), sql.SQL(allowed)))

    with monkeypatch.context() as patched:
        patched.setattr("projections.swap.TRIES_MAX", 2)
        patched.setattr("projections.swap.PAUSE_S_MAX", 0)
        end_each_session_after_its_commit(patched, owner_conn, first=lambda: allow_connections("false"))

        with pytest.raises(SwapUnknown, match="see `hydracore projections list`"):
            await rebuild_here(database_url, InstanceProjection())
    await allow_connections("true")

    live = await generations.live_generation(owner_conn, "instance")
    assert live is not None
    assert live.number == 2
    assert await generations.newest_in_states(owner_conn, "instance", *generations.UNFINISHED) is None
    assert (await dry_run_here(database_url, InstanceProjection())).drifted == 0


async def test_a_new_session_with_the_pid_of_a_lost_one_is_not_ended(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    build = await generations.begin(owner_conn, InstanceProjection())
    candidate = Candidate.of(InstanceProjection(), build, None, Pace(full_speed=True))
    async with await connect(database_url) as other, await connect(database_url) as asking:
        row = await (await other.execute(swap._SESSION)).fetchone()
        assert row is not None
        pid, began_at = row

        assert not await swap._was_committed(asking, candidate, session=(pid, began_at - timedelta(days=1)))
        await other.execute("SELECT 1")
        assert not await swap._was_committed(asking, candidate, session=(pid, began_at))
        with pytest.raises(psycopg.errors.AdminShutdown):
            await other.execute("SELECT 1")


@pytest.mark.parametrize("pruned", [False, True], ids=["nobody came", "its build was pruned"])
async def test_a_rebuild_that_has_lost_its_lock_swaps_nothing(
    database_url: str, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch, *, pruned: bool
) -> None:
    monkeypatch.setattr("projections.swap.TRIES_MAX", 5)
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)
    async with await psycopg.AsyncConnection.connect(database_url) as blocker:
        await blocker.execute("SELECT FROM lane WHERE lane = 63 FOR UPDATE")
        rebuilding = asyncio.create_task(rebuild_here(database_url, InstanceProjection()))
        await until(lambda: in_state(owner_conn, "Lock", "active"))

        await owner_conn.execute(END_LOCK)
        if pruned:
            await prune(database_url, "instance")

        with pytest.raises(RebuildLockLost, match="nothing was swapped: run this again to continue"):
            await rebuilding
    report = await rebuild_here(database_url, InstanceProjection())
    assert (report.resumed, report.swapped, report.drifted) == (not pruned, True, 0)


async def test_a_rollback_that_loses_its_lock_while_it_catches_up_swaps_nothing(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=1)
        await rebuild_here(database_url, InstanceProjection())
        await write_instances(store, count=1, start=1)
    async with await psycopg.AsyncConnection.connect(database_url) as sitter:
        await sitter.execute("LOCK TABLE instance_g1.instance IN SHARE MODE")
        going_back = asyncio.create_task(rollback(database_url, InstanceProjection()))
        await until(lambda: any_row(owner_conn, TABLE_AWAITED))

        await owner_conn.execute(END_LOCK)

    with pytest.raises(RebuildLockLost):
        await going_back
    live = await generations.live_generation(owner_conn, "instance")
    assert live is not None
    assert live.number == 2


async def test_a_rebuild_frozen_during_its_swap_does_not_block_writers_and_swaps_when_resumed(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)
    env = os.environ | {"HYDRACORE_DATABASE_URL": database_url}
    with Command.started("projections", "rebuild", "instance", "--workers", "1", env=env) as command:
        async with await psycopg.AsyncConnection.connect(database_url) as blocker:
            frozen = False
            while not frozen:
                await blocker.execute("SELECT FROM lane WHERE lane = 63 FOR UPDATE")
                command.signal(signal.SIGCONT)
                await until(lambda: in_state(owner_conn, "Lock", "active"))
                command.signal(signal.SIGSTOP)
                await blocker.rollback()
                await until(lambda: in_no_state(owner_conn, "active"))
                # Now the rebuild has locked all heads, unless it had given up a moment before.
                frozen = await in_state(owner_conn, "Client", "idle in transaction")

            await owner_conn.execute("SET statement_timeout = '10s'")
            await owner_conn.execute("SELECT FROM lane FOR UPDATE")
            command.signal(signal.SIGCONT)
            ended = await command.ended()

    assert (ended.status, ended.stderr) == (0, "")
    assert "generation 2 is live" in ended.stdout


async def in_state(connection: psycopg.AsyncConnection, *expected: str) -> bool:
    return expected in await (await connection.execute(STATE)).fetchall()


async def any_row(connection: psycopg.AsyncConnection, query: LiteralString) -> bool:
    return bool(await (await connection.execute(query)).fetchall())


async def in_no_state(connection: psycopg.AsyncConnection, unwanted: str) -> bool:
    return all(state != unwanted for _, state in await (await connection.execute(STATE)).fetchall())


async def test_a_swap_that_fails_for_good_is_tried_once(database_url: str, owner_conn: psycopg.AsyncConnection) -> None:
    await owner_conn.execute(FULL)

    with pytest.raises(psycopg.errors.DiskFull):
        await rebuild_here(database_url, InstanceProjection())

    assert await one(owner_conn, "SELECT last_value::int FROM tries") == 1


async def test_a_swap_that_gets_no_connection_for_its_first_try_ends(
    database_url: str, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.swap.PAUSE_S_MAX", 0)
    build = await generations.begin(owner_conn, InstanceProjection())
    candidate = Candidate.of(InstanceProjection(), build, None, Pace(full_speed=True))
    nowhere = make_conninfo(database_url, dbname="nowhere")

    with pytest.raises(psycopg.OperationalError, match="nowhere"):
        await swap.swap(partial(psycopg.AsyncConnection.connect, nowhere), candidate, prepare=prepare_nothing)


async def prepare_nothing(_: psycopg.AsyncConnection) -> int:
    raise AssertionError("there is no connection")
