"""A commit whose answer is lost: the append is repeated, finds that it was made, and its caller learns the result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from msgspec.structs import replace
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from events import commands as c
from events.ids import lane_of
from events.state import TEARDOWN_STEPS
from events.store import EventStore
from hydracore.db.pool import open_pool
from projections.inline import inline_projections
from tests import lifecycle
from tests.lifecycle import instance_id
from tests.log_check import check_log
from tests.stack import Stack
from tests.store_commands import open_store, origin
from workers.advance import advance

ADA = instance_id("ada")


async def live(store: EventStore, *commands: c.AnyCommand) -> None:
    """Give `commands` to Ada's instance one after the other."""
    for command in commands:
        await store.execute(ADA, command, origin())


class LossyProxy:
    """A proxy to PostgreSQL that can lose the answer to an append: it cuts the connection instead of passing it on."""

    def __init__(self, database_url: str) -> None:
        given = conninfo_to_dict(database_url)
        self._there = (str(given["host"]), int(str(given["port"])))
        self.losing = False
        self.lost = 0
        self._serving: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[int]:
        """The port to connect to."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]
            # All clients have left, so that their connections end now.
            await asyncio.wait(self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        there_reader, there_writer = await asyncio.open_connection(*self._there)
        back = asyncio.create_task(self._pass(there_reader, writer, answers=True))
        await self._pass(reader, there_writer, answers=False)
        await back

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                # The word is in the answer, which is sent once the transaction has been committed.
                if answers and self.losing and b"appended" in data:
                    self.losing, self.lost = False, self.lost + 1
                    break
                writer.write(data)
                await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_an_append_whose_answer_was_lost_is_made_once_returns_its_events_and_wakes_followers(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    proxy = LossyProxy(database_url)
    notified: list[dict[int, int]] = []
    async with proxy.open() as port:
        through = make_conninfo(database_url, port=port)
        async with open_pool(through, role="hydracore_app", application="test", size=1) as pool:
            store = EventStore(pool, inline=inline_projections(), on_commit=notified.append)
            await live(store, *lifecycle.RUNNING)
            notified.clear()

            proxy.losing = True
            outcome = await store.execute(ADA, lifecycle.rotate_key(), origin())

    assert proxy.lost == 1
    assert [type(event).__name__ for event in outcome.events] == ["AgentKeyRevoked"]
    assert outcome.duplicate, "other events may have happened since"
    log = await check_log(owner_conn)
    assert log.versions == {ADA: outcome.state.version}
    assert notified == [{lane_of(ADA): outcome.state.version}], "followers are woken all the same"


async def test_a_repeated_append_returns_its_events_with_the_state_after_later_events(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _), open_store(database_url) as (other, _):
        await live(store, *lifecycle.RUNNING)
        before, rotation = await store.load(ADA), origin()
        await store.execute_at(before, ADA, lifecycle.rotate_key(), rotation)
        await live(other, lifecycle.delete())

        again = await store.execute_at(before, ADA, lifecycle.rotate_key(), rotation)

    assert [type(event).__name__ for event in again.events] == ["AgentKeyRevoked"]
    assert again.state.status == "deleting"
    await check_log(owner_conn)


async def test_a_repeated_append_does_not_reserve_again_what_was_released_since(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _), open_store(database_url) as (other, _):
        await live(store, lifecycle.request())
        before, planning = await store.load(ADA), origin()
        await store.execute_at(before, ADA, lifecycle.plan(), planning)
        await live(other, lifecycle.delete(), *map(lifecycle.teardown, TEARDOWN_STEPS), lifecycle.finish())

        again = await store.execute_at(before, ADA, lifecycle.plan(), planning)

    assert again.state.status == "deleted"
    held = await owner_conn.execute("SELECT kind FROM reservation WHERE released_at IS NULL")
    assert await held.fetchall() == [("idempotency_key",)]


async def test_after_a_lost_answer_to_a_plan_a_refused_create_does_not_prove_that_nothing_was_made(
    stack: Stack, database_url: str
) -> None:
    proxy = LossyProxy(database_url)
    stack.cloudsim.fault("create_server", "no_capacity", name=f"hc-{ADA}")
    async with proxy.open() as port:
        there = urlsplit(database_url)
        through = there._replace(netloc=there.netloc.replace(f":{there.port}", f":{port}")).geturl()
        async with stack.deps(database_url=through) as deps:
            await deps.store.execute(ADA, replace(lifecycle.request(), at_ms=deps.now_ms()), deps.origin(ADA))
            proxy.losing = True
            await advance(deps, ADA)
            state = await deps.store.load(ADA)

    assert proxy.lost == 1
    assert state is not None
    assert state.attempt is not None
    # Another worker may have sent a create meanwhile, about which the refusal of this one says nothing.
    assert (state.attempt.number, state.attempt.failure, state.attempt.nothing_made) == (
        1,
        "resource_unavailable",
        False,
    )
