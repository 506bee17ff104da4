"""Locks on instances: one process at a time works on an instance, as long as it is alive and shows it."""

import asyncio
import sys
from threading import Event
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from hydracore.signals import run_to_completion
from tests import lifecycle
from tests.cloudsim_fixtures import REPOSITORY
from tests.waiting import PATIENCE_S, until
from workers.locks import InstanceLocks

ADA = lifecycle.instance_id()

#: As short as a busy machine allows.
SILENCE_S_MAX = 3.0

#: How old the session of the locks was when it was last active.
HEARD = """
    SELECT extract(epoch FROM state_change - backend_start) FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = 'hydracore-locks'
"""


async def test_a_frozen_process_loses_its_locks_and_notices_it_when_it_wakes_up(database_url: str) -> None:
    frozen, thawed = Event(), Event()
    locks = InstanceLocks(database_url, role="")
    assert await is_free(locks)
    freezing = asyncio.create_task(asyncio.to_thread(run_to_completion, hold_frozen(database_url, frozen, thawed)))
    await asyncio.to_thread(frozen.wait, PATIENCE_S)
    assert not await is_free(locks)

    await until(lambda: is_free(locks))

    thawed.set()
    await freezing
    await locks.close()


async def hold_frozen(database_url: str, frozen: Event, thawed: Event) -> None:
    locks = InstanceLocks(database_url, role="", idle_s_max=SILENCE_S_MAX)
    async with locks.hold(ADA) as hold:
        assert hold is not None
        frozen.set()
        # The whole event loop is blocked, while the kernel still answers on its connections.
        thawed.wait(PATIENCE_S)
        await until(lambda: hold.is_lost)
    assert await is_free(locks)
    await locks.close()


async def test_a_task_that_is_cancelled_while_it_requests_a_lock_leaves_it_to_others(database_url: str) -> None:
    stopped, other = InstanceLocks(database_url, role=""), InstanceLocks(database_url, role="")
    assert await is_free(stopped)
    connection = stopped._connection
    assert connection is not None

    asking = asyncio.create_task(is_free(stopped))
    while not connection.lock.locked():  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])

    assert asking.cancelled()
    # The server releases the locks when it learns that their session is gone.
    await until(lambda: is_free(other))
    await stopped.close()
    await other.close()


async def test_an_instance_can_be_locked_once_the_database_accepts_connections_again(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    locks = InstanceLocks(database_url, role="")
    admit = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    name = sql.Identifier(owner_conn.info.dbname)
    elsewhere = make_conninfo(database_url, dbname="postgres")
    async with await psycopg.AsyncConnection.connect(elsewhere, autocommit=True) as operator:
        await operator.execute(admit.format(name, sql.SQL("false")))
        with pytest.raises(psycopg.OperationalError):
            await is_free(locks)
        await operator.execute(admit.format(name, sql.SQL("true")))

    assert await is_free(locks)
    await locks.close()


async def test_an_instance_is_locked_only_once_within_a_process_too(database_url: str) -> None:
    """To PostgreSQL a process is one session, which may take a lock repeatedly."""
    locks, other = InstanceLocks(database_url, role=""), InstanceLocks(database_url, role="")

    async with locks.hold(ADA) as hold:
        assert hold is not None
        assert not await is_free(locks)
        assert not await is_free(other)

    assert await is_free(other)
    assert await is_free(locks)
    await locks.close()
    await other.close()


async def test_a_request_for_a_lock_is_granted_while_another_task_of_the_process_releases_it(database_url: str) -> None:
    """The task that releases it may already have checked whether another one waits."""
    locks, other = InstanceLocks(database_url, role=""), InstanceLocks(database_url, role="")
    has_it, is_done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with locks.hold(ADA) as hold:
            assert hold is not None
            has_it.set()
            await is_done.wait()

    working = asyncio.create_task(work())
    await has_it.wait()
    is_done.set()
    # After the task that releases the lock, which has to ask the database before the lock is free.
    coming = asyncio.create_task(is_free(locks))

    assert await coming
    await working
    assert await is_free(other)
    await locks.close()
    await other.close()


async def cancel_one_request_as_another_begins_to_wait(database_url: str) -> None:
    locks = InstanceLocks(database_url, role="")
    assert await is_free(locks)
    connection = locks._connection
    assert connection is not None

    await connection.lock.acquire()
    listening = asyncio.create_task(is_free(locks))
    stopped = asyncio.create_task(is_free(locks, lifecycle.instance_id("eve")))
    await asyncio.sleep(0)
    connection.lock.release()
    stopped.cancel()

    found, end = await asyncio.gather(listening, stopped, return_exceptions=True)
    assert found is True
    assert isinstance(end, asyncio.CancelledError)
    await locks.close()


async def test_a_cancelled_request_for_a_lock_does_not_end_its_process(database_url: str) -> None:
    """libuv ends a process that makes it watch a descriptor that is already closed."""
    scenario = cancel_one_request_as_another_begins_to_wait
    code = f"import sys, uvloop; from {__name__} import {scenario.__name__} as it; uvloop.run(it(sys.argv[1]))"

    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, database_url, cwd=REPOSITORY)
    assert await process.wait() == 0


async def test_an_idle_process_keeps_its_locks(database_url: str, owner_conn: psycopg.AsyncConnection) -> None:
    holder = InstanceLocks(database_url, role="", idle_s_max=SILENCE_S_MAX)
    async with holder.hold(ADA) as hold:

        async def has_been_silent() -> bool:
            row = await (await owner_conn.execute(HEARD)).fetchone()
            assert row is not None, "the session has ended"
            return row[0] > 2 * SILENCE_S_MAX

        await until(has_been_silent)

        assert hold is not None
        assert not hold.is_lost
        other = InstanceLocks(database_url, role="")
        assert not await is_free(other)
    assert await is_free(other)
    await other.close()
    await holder.close()


async def test_locks_are_taken_with_the_configured_database_role(database_url: str) -> None:
    """The login may have no rights of its own."""
    locks = InstanceLocks(database_url, role="hydracore_app")
    assert await is_free(locks)
    connection = locks._connection
    assert connection is not None

    assert await (await connection.execute("SELECT current_user")).fetchone() == ("hydracore_app",)
    await locks.close()


async def is_free(locks: InstanceLocks, instance_id: UUID = ADA) -> bool:
    async with locks.hold(instance_id) as hold:
        return hold is not None
