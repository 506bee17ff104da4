"""The head watcher survives any failure of Redis, and ends when it is cancelled."""

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
from tests.store_commands import create_instance, open_store
from tests.waiting import PATIENCE_S, until
from workers import head_watcher
from workers.head_watcher import HeadWatcher, wait_for_events

#: Longer than any test.
LONG_S = 600.0

#: Enough connections for each way in which one can break.
CONNECTIONS = 200


def test_a_redis_that_resets_connections_does_not_end_the_head_watcher(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_watcher, "RECOVER_S", 0)
    accepted = 0

    def reset(server: socket.socket) -> None:
        nonlocal accepted
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                # Closed like this, the connection is reset, as by a killed server.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
                accepted += 1

    async def look(port: int) -> None:
        async with open_store(database_url) as (_, pool), Redis.from_url(f"redis://127.0.0.1:{port}") as redis:
            running = asyncio.create_task(HeadWatcher(pool, redis).run())
            await until(lambda: accepted > CONNECTIONS or running.done())
            assert not running.done(), running.exception()
            running.cancel()
            # Also while a connection is being reset.
            await asyncio.wait((running,), timeout=PATIENCE_S)
            assert running.cancelled()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=reset, args=(server,), daemon=True).start()
        uvloop.run(look(server.getsockname()[1]))


async def test_a_message_wakes_the_waiting_followers_once(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_watcher, "POLL_S", LONG_S)
    async with open_store(database_url) as (_, pool), Redis.from_url(redis_url) as redis:
        watcher = HeadWatcher(pool, redis)
        first = watcher.new_events
        running = asyncio.create_task(watcher.run())
        # The watcher looks once as it begins. It does not look again.
        await until(first.is_set)
        moved = watcher.new_events
        assert not moved.is_set()

        # Repeated until the watcher listens.
        await until(lambda: redis.publish(CHANNEL, b"{}"))

        await until(moved.is_set)
        assert not watcher.new_events.is_set(), "later waits are for the next move"
        running.cancel()
        await asyncio.wait([running])


async def test_new_events_are_noticed_without_a_message_from_redis(
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

        await create_instance(store)

        await until(moved.is_set)
        running.cancel()
        await asyncio.wait([running])


async def test_a_wait_for_events_ends_after_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that had leased a lane may have died."""
    monkeypatch.setattr(head_watcher, "WAIT_S_MAX", 0.01)

    async with asyncio.timeout(PATIENCE_S):
        await wait_for_events(asyncio.Event())
