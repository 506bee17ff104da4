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

from tests.requests_to_log import open_store
from tests.waiting import PATIENCE_S, until
from workers import head_watcher
from workers.head_watcher import HeadWatcher

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
