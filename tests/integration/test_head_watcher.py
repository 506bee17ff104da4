"""What watches the heads lives through whatever becomes of Redis, and ends when it is told to."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress

import pytest
import uvloop
from redis.asyncio import Redis

from hydracore.embedded.ports import free_port
from hydracore.wake import CHANNEL
from tests.requests_to_log import open_store, requested
from tests.waiting import PATIENCE_S, until
from workers import head_watcher
from workers.head_watcher import HeadWatcher, wait_for_events

#: Longer than any test.
LONG_S = 600.0

#: Enough of them for each way in which a connection can go.
CONNECTIONS = 200


def test_a_redis_that_goes_as_it_is_reached_ends_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watcher, "RECOVER_S", 0)
    accepted = 0

    def reset(server: socket.socket) -> None:
        nonlocal accepted
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                # Closed like this, it is reset, as by a server that is killed.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
                accepted += 1

    async def look(port: int) -> None:
        async with open_store(database_url) as (_, pool), Redis.from_url(f"redis://127.0.0.1:{port}") as redis:
            running = asyncio.create_task(HeadWatcher(pool, redis).run())
            await until(lambda: accepted > CONNECTIONS or running.done())
            assert not running.done(), running.exception()
            running.cancel()
            # Also in the middle of a connection that goes.
            await asyncio.wait((running,), timeout=PATIENCE_S)
            assert running.cancelled()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=reset, args=(server,), daemon=True).start()
        uvloop.run(look(server.getsockname()[1]))


async def test_a_message_tells_once_those_who_follow(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_watcher, "POLL_S", LONG_S)
    async with open_store(database_url) as (_, pool), Redis.from_url(redis_url) as redis:
        watcher = HeadWatcher(pool, redis)
        first = watcher.new_events
        running = asyncio.create_task(watcher.run())
        # What it finds as it begins. It does not look again.
        await until(first.is_set)
        moved = watcher.new_events
        assert not moved.is_set()

        # Until one comes as it listens already.
        await until(lambda: redis.publish(CHANNEL, b"{}"))

        await until(moved.is_set)
        assert not watcher.new_events.is_set(), "the next who wait wait for the next move"
        running.cancel()
        await asyncio.wait([running])


async def test_a_move_of_which_no_message_tells_is_seen_all_the_same(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_watcher, "POLL_S", 0.01)
    nowhere = f"redis://127.0.0.1:{free_port()}"
    async with open_store(database_url) as (store, pool), Redis.from_url(nowhere) as redis:
        watcher = HeadWatcher(pool, redis)
        first = watcher.new_events
        running = asyncio.create_task(watcher.run())
        await until(first.is_set)
        moved = watcher.new_events

        await requested(store)

        await until(moved.is_set)
        running.cancel()
        await asyncio.wait([running])


async def test_nobody_rests_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have died that had leased a lane."""
    monkeypatch.setattr(head_watcher, "WAIT_S_MAX", 0.01)

    async with asyncio.timeout(PATIENCE_S):
        await wait_for_events(asyncio.Event())
