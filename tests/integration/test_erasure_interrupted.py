"""An interrupted erasure says what is done for good, and the next one completes it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from events.errors import StoreUnavailable
from hydracore.audit import erasing
from hydracore.audit.erasure_file import Erasure
from tests.cloudsim_fixtures import REPOSITORY
from tests.customers import ADA_KEY, EMAIL, LOCK_WAITS, PROMPT, World, last_event, readable_fields, world_fixture
from tests.disk import limited_file_size, steps_fixture
from tests.forked import Forked
from tests.store_commands import open_store
from tests.waiting import PATIENCE_S, until

__all__ = ["steps_fixture", "world_fixture"]

#: Part of the time for which an erasure waits for appends in transit.
WAITED_S = 0.5

ORDERED = (
    "the order is recorded and stays in force: the next `db migrate` or API start destroys the key; run the same command again "
    "to complete it"
)
UNWRITTEN = (
    "this has destroyed no key; if the order got into the file, the next `db migrate` or API start destroys the key; once the file "
    "can be written, run the same command again"
)
DESTROYED = "the key is destroyed; run the same command again to record the erasure in the customer's instances"

_LOCKS = {
    "ordered": "SELECT FROM customer_key FOR UPDATE",
    "destroyed": "SELECT FROM lane FOR UPDATE",
}


async def test_an_erasure_interrupted_after_destroying_the_key_reports_that_and_what_is_left_to_do(
    world: World, owner_conn: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    words = ("audit", "erase-customer", "ada", "--also-live", "--yes")
    env, log = os.environ | world.environ, tmp_path / "log"
    process = Forked("hydracore", *words, cwd=REPOSITORY, env=env, stdout=log, stderr=log)

    async def destroyed() -> bool:
        return (await (await owner_conn.execute(ADA_KEY)).fetchone()) == (None,)

    try:
        await until(destroyed)
        await asyncio.sleep(WAITED_S)
        process.signal(signal.SIGINT)
        status = await asyncio.to_thread(process.wait, PATIENCE_S)
    finally:
        process.kill()
    again = await asyncio.to_thread(world.erase, "--also-live", "--yes")

    assert (status, log.read_text()) == (130, f"hydracore: interrupted: {DESTROYED}\n")
    assert (again.exit_code, "recorded in 3 of 3 instances" in again.stdout) == (0, True)


async def test_an_erasure_interrupted_before_destroying_the_key_reports_that_its_order_stays_in_force(
    world: World, owner_conn: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    words = ("audit", "erase-customer", "ada", "--also-live", "--yes")
    env, log = os.environ | world.environ, tmp_path / "log"

    async def stopped() -> bool:
        return (await (await owner_conn.execute(LOCK_WAITS)).fetchone()) == (1,)

    async with await psycopg.AsyncConnection.connect(world.url) as holder:
        await holder.execute(_LOCKS["ordered"].encode())
        process = Forked("hydracore", *words, cwd=REPOSITORY, env=env, stdout=log, stderr=log)
        try:
            await until(stopped)
            process.signal(signal.SIGINT)
            status = await asyncio.to_thread(process.wait, PATIENCE_S)
        finally:
            process.kill()

    assert (status, log.read_text()) == (130, f"hydracore: interrupted: {ORDERED}\n")
    assert await readable_fields(world.url, world.ada[0], "ada") == [EMAIL, PROMPT]
    assert ("acme", "ada") in world.file.erasures()


async def test_an_erasure_interrupted_while_writing_its_order_reports_that_the_order_may_exist(
    world: World,
) -> None:
    command = [sys.executable, "-c", _INTERRUPTED, "audit", "erase-customer", "ada", "--also-live", "--yes"]
    process = await asyncio.create_subprocess_exec(
        *command, env=os.environ | world.environ, stderr=asyncio.subprocess.PIPE
    )
    _, error_output = await process.communicate()

    assert (process.returncode, error_output.decode()) == (130, f"hydracore: interrupted: {UNWRITTEN}\n")
    assert await readable_fields(world.url, world.ada[0], "ada") == [EMAIL, PROMPT]
    assert ("acme", "ada") in world.file.erasures()


async def test_a_failed_erasure_reports_how_far_it_came_and_the_next_one_completes_it(
    world: World, owner_conn: psycopg.AsyncConnection
) -> None:
    failed = list[tuple[int, str]]()
    for forbidden in ("SELECT ON event", "UPDATE ON customer_key", "SELECT ON event"):
        await owner_conn.execute(f"REVOKE {forbidden} FROM hydracore_app".encode())
        result = await asyncio.to_thread(world.erase, "--also-live", "--yes")
        failed.append((result.exit_code, result.stderr))
        await owner_conn.execute(f"GRANT {forbidden} TO hydracore_app".encode())

    result = await asyncio.to_thread(world.erase, "--also-live", "--yes")

    assert failed == [
        (3, "hydracore: permission denied for table event\n"),
        (3, f"hydracore: permission denied for table customer_key ({ORDERED})\n"),
        (3, f"hydracore: permission denied for table event ({DESTROYED})\n"),
    ]
    assert "the key was destroyed before, recorded in 3 of 3 instances" in result.stdout
    assert len(list(world.file.read())) == 1


async def test_an_erasure_whose_order_cannot_be_written_reports_that_no_key_was_destroyed(world: World) -> None:
    world.file.append(
        [Erasure(tenant_id="acme", customer_id="eve", ordered_at=datetime(2026, 11, 25, tzinfo=UTC), by="test")]
    )

    with limited_file_size(world.file.path.stat().st_size):
        result = await asyncio.to_thread(world.erase, "--also-live", "--yes")

    path = world.file.path
    assert (result.exit_code, result.stderr) == (3, f"hydracore: [Errno 27] File too large: '{path}' ({UNWRITTEN})\n")
    assert await readable_fields(world.url, world.ada[0], "ada") == [EMAIL, PROMPT]
    again = await asyncio.to_thread(world.erase, "--also-live", "--yes")
    assert "key destroyed, recorded in 3 of 3 instances" in again.stdout


async def test_the_text_of_a_database_error_is_not_shown_for_a_stream_where_the_erasure_failed(
    world: World, owner_conn: psycopg.AsyncConnection
) -> None:
    """It may quote what an event says."""
    await owner_conn.execute("REVOKE UPDATE ON lane FROM hydracore_app")

    result = await asyncio.to_thread(world.erase, "--also-live", "--yes")

    assert (result.exit_code, result.stderr.count("(InsufficientPrivilege)")) == (1, len(world.ada))


async def test_an_unavailable_store_is_not_taken_for_a_broken_history(world: World) -> None:
    async with open_store(world.url) as (closed, _):
        pass
    customer = await erasing.find_customer(world.pool, "ada", tenant_id=None)
    progress = erasing.ErasureProgress(
        order_begun=lambda: None, order_recorded=lambda: None, key_destroyed=lambda: None, instances_done=lambda _: None
    )
    order = {"actor": "test", "correlation_id": uuid4(), "clock": lambda: datetime.now(UTC)}

    with pytest.raises(StoreUnavailable):
        await erasing.Eraser(world.pool, closed, world.file, **order).erase(customer, progress)


async def test_an_order_already_in_the_file_is_synced_to_disk_before_the_key_is_destroyed(
    world: World, owner_conn: psycopg.AsyncConnection, steps: list[str]
) -> None:
    """The process that wrote it may have been killed before it was synced."""
    order = Erasure(tenant_id="acme", customer_id="ada", ordered_at=datetime(2026, 11, 25, tzinfo=UTC), by="test")
    world.file.append([order])
    steps.clear()
    await owner_conn.execute("REVOKE UPDATE ON customer_key FROM hydracore_app")

    await asyncio.to_thread(world.erase, "--also-live", "--yes")

    assert steps == [f"fsync {world.file.path.name}", f"fsync {world.file.path.parent.name}"]


@pytest.mark.parametrize("point", _LOCKS)
async def test_a_killed_erasure_is_completed_by_the_next_one(
    world: World, owner_conn: psycopg.AsyncConnection, point: str
) -> None:
    async with await psycopg.AsyncConnection.connect(world.url) as holder:
        await holder.execute(_LOCKS[point].encode())
        command = [sys.executable, "-c", _IMPATIENT, "audit", "erase-customer", "ada", "--also-live", "--yes"]
        victim = await asyncio.create_subprocess_exec(*command, env=os.environ | world.environ)

        async def stopped() -> bool:
            return (await (await owner_conn.execute(LOCK_WAITS)).fetchone()) == (1,)

        await until(stopped)
        victim.kill()
        await victim.wait()
        # The server may still execute what it was asked for, once the lock is released.
        assert ("acme", "ada") in world.file.erasures()
        kept = await (await owner_conn.execute(ADA_KEY)).fetchone()
        assert (kept == (None,)) == (point == "destroyed")

    result = await asyncio.to_thread(world.erase, "--also-live", "--yes")

    assert result.exit_code == 0
    for stream_id in world.ada:
        assert await readable_fields(world.url, stream_id, "ada") == []
        assert await last_event(world.url, stream_id) == "customer_erased"


#: The command line without the waits for the caches of other processes: there are none.
_IMPATIENT = """
from events import keys
from hydracore.audit import erasing
from hydracore.cli import main

keys.CACHE_S = erasing.APPEND_S = 0.0
main()
"""

#: The command line, which is interrupted while it syncs its file to disk. The sync takes until the work was cancelled and the loop is
#: being closed.
_INTERRUPTED = """
import os
import signal
import sys
import threading
import time
import traceback

from hydracore.cli import main

fsync = os.fsync

def interrupted(descriptor):
    os.fsync = fsync
    os.kill(os.getpid(), signal.SIGINT)
    while not any(
        frame.name == "close" and frame.filename.endswith("asyncio/runners.py")
        for frame in traceback.extract_stack(sys._current_frames()[threading.main_thread().ident])
    ):
        time.sleep(0.01)
    fsync(descriptor)

os.fsync = interrupted
main()
"""
