"""Who works on an instance: one process at a time, as long as it is alive and can show it."""

import asyncio
from threading import Event

import psycopg

from tests import lives
from tests.waiting import PATIENCE_S, until
from workers.locks import InstanceLocks

ADA = lives.instance_id()

#: As short as a busy machine allows.
SILENCE_S_MAX = 3.0

#: How long the session of the locks has been there when it was last heard of.
HEARD = """
    SELECT extract(epoch FROM state_change - backend_start) FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = 'hydracore-locks'
"""


async def test_a_frozen_process_loses_its_locks_and_knows_it_when_it_wakes_up(database_url: str) -> None:
    frozen, thawed = Event(), Event()
    locks = InstanceLocks(database_url, role="")
    assert await is_free(locks)
    freezing = asyncio.create_task(asyncio.to_thread(asyncio.run, hold_frozen(database_url, frozen, thawed)))
    await asyncio.to_thread(frozen.wait, PATIENCE_S)
    assert not await is_free(locks)

    await until(lambda: is_free(locks))

    thawed.set()
    await freezing
    await locks.close()


async def hold_frozen(database_url: str, frozen: Event, thawed: Event) -> None:
    locks = InstanceLocks(database_url, role="", silence_s_max=SILENCE_S_MAX)
    async with locks.hold(ADA) as hold:
        assert hold is not None
        frozen.set()
        # The whole loop stands still, and the kernel goes on answering for it.
        thawed.wait(PATIENCE_S)
        await until(lambda: hold.is_lost)
    assert await is_free(locks)
    await locks.close()


async def test_whoever_is_stopped_as_it_asks_for_a_lock_leaves_it_to_others(database_url: str) -> None:
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
    assert await is_free(other)
    await stopped.close()
    await other.close()


async def test_a_process_with_nothing_to_say_keeps_its_locks(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    holder = InstanceLocks(database_url, role="", silence_s_max=SILENCE_S_MAX)
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


async def is_free(locks: InstanceLocks) -> bool:
    async with locks.hold(ADA) as hold:
        return hold is not None
