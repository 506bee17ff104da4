"""Exchanges that are sent one after another on a connection, before the previous one is answered."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import psutil
import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from events.exchange import Statement, exchange, hang_up
from hydracore.db.answer_timeout import AnswerTimeoutConnection
from tests.cloudsim_fixtures import REPOSITORY
from tests.exchange_fixtures import ADD, NUMBERS, READY, WAIT, connection_fixture, noted_words
from tests.waiting import PATIENCE_S, until

__all__ = ["connection_fixture"]


@asynccontextmanager
async def overheard(database_url: str) -> AsyncGenerator[tuple[AsyncConnection, bytearray]]:
    """A connection, and what has been sent on it so far."""
    given, sent, served = conninfo_to_dict(database_url), bytearray(), asyncio.Event()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: bytearray) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                note += data
                writer.write(data)
                await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(str(given["host"]), int(str(given["port"])))
        await asyncio.gather(carry(reader, there_writer, sent), carry(there_reader, writer, bytearray()))
        served.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        through = make_conninfo(database_url, port=server.sockets[0].getsockname()[1])
        async with await AsyncConnection.connect(through, autocommit=True) as connection:
            yield connection, sent
        await served.wait()


async def test_the_next_exchange_is_sent_before_the_previous_one_is_answered(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    async with overheard(database_url) as (connection, sent):
        await connection.execute("CREATE TEMPORARY TABLE noted (word text)")
        await owner_conn.execute("SELECT pg_advisory_lock(1)")

        first = asyncio.create_task(exchange(connection, [WAIT, Statement(ADD, (b"first",))], pipelined=True))
        second = asyncio.create_task(exchange(connection, [Statement(ADD, (b"second",)), NUMBERS], pipelined=True))
        await until(lambda: b"second" in sent)

        assert not first.done()
        await owner_conn.execute("SELECT pg_advisory_unlock(1)")
        assert await first == [[(b"",)], []]
        assert await second == [[], [(b"1", b"1x"), (b"2", b"2x")]]
        assert await noted_words(connection) == ["first", "second"]


async def test_each_pipelined_exchange_is_a_separate_transaction(connection: AsyncConnection) -> None:
    words = (b"good", b"bad", b"better", b"bad", b"best")

    answers = await asyncio.gather(
        *(exchange(connection, [Statement(ADD, (word,)), NUMBERS], pipelined=True) for word in words),
        return_exceptions=True,
    )

    refused = psycopg.errors.CheckViolation
    assert [type(answer) for answer in answers] == [list, refused, list, refused, list]
    assert await noted_words(connection) == ["best", "better", "good"]


def have_come(connection: AsyncConnection, count: int) -> None:
    """Block the event loop until so many answers have arrived, so that it has read none of them."""
    give_up_s = time.monotonic() + PATIENCE_S
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as there:
        while (
            not select.select([there], [], [], PATIENCE_S)[0]
            or there.recv(65_536, socket.MSG_PEEK).count(READY) < count
        ):
            assert time.monotonic() < give_up_s


async def test_large_exchanges_do_not_block_each_other(connection: AsyncConnection) -> None:
    """They are larger than the network buffers in both directions."""
    words = [character * 20_000_000 for character in (b"a", b"b", b"c")]

    answers = await asyncio.gather(
        *(exchange(connection, [Statement(b"SELECT $1::text", (word,))], pipelined=True) for word in words)
    )

    assert answers == [[[(word,)]] for word in words]


async def test_an_answer_that_arrives_while_another_exchange_is_sent_reaches_its_own_caller(
    connection: AsyncConnection,
) -> None:
    """libpq reads what has arrived when it cannot send everything at once."""
    first = asyncio.create_task(exchange(connection, [NUMBERS], pipelined=True))
    await asyncio.sleep(0)
    have_come(connection, 1)

    assert await exchange(connection, [Statement(b"SELECT length($1)", (b"x" * 30_000_000,))], pipelined=True)
    assert await first == [[(b"1", b"1x"), (b"2", b"2x")]]


async def test_a_statement_that_is_prepared_again_also_serves_the_exchanges_sent_after_it(
    connection: AsyncConnection,
) -> None:
    await exchange(connection, [NUMBERS])
    await connection.execute("DEALLOCATE ALL")

    answers = await asyncio.gather(*(exchange(connection, [NUMBERS], pipelined=True) for _ in range(3)))

    assert answers == [[[(b"1", b"1x"), (b"2", b"2x")]]] * 3


async def test_a_command_of_psycopg_waits_for_the_exchanges_in_progress(connection: AsyncConnection) -> None:
    adding = [asyncio.create_task(exchange(connection, [Statement(ADD, (b"a",))], pipelined=True)) for _ in range(3)]
    await asyncio.sleep(0)  # All of them are sent now.

    assert await noted_words(connection) == ["a", "a", "a"]
    await asyncio.gather(*adding)


async def test_an_exchange_without_pipelining_waits_for_the_one_before_it(
    connection: AsyncConnection, owner_conn: AsyncConnection
) -> None:
    await owner_conn.execute("SELECT pg_advisory_lock(1)")
    first = asyncio.create_task(exchange(connection, [WAIT]))
    await asyncio.sleep(0)
    second = asyncio.create_task(exchange(connection, [NUMBERS]))
    await asyncio.sleep(0)

    second.cancel()

    await owner_conn.execute("SELECT pg_advisory_unlock(1)")
    assert await first == [[(b"",)]]
    assert not connection.closed
    with pytest.raises(asyncio.CancelledError):
        await second


@pytest.mark.parametrize("given_up", [0, 1])
async def test_a_cancelled_exchange_closes_the_connection_and_its_answers_reach_no_other_exchange(
    connection: AsyncConnection, owner_conn: AsyncConnection, given_up: int
) -> None:
    await owner_conn.execute("SELECT pg_advisory_lock(1)")
    both = [asyncio.create_task(exchange(connection, [WAIT, NUMBERS], pipelined=True)) for _ in range(2)]
    await asyncio.sleep(0)

    both[given_up].cancel()
    gone, other = await asyncio.gather(both[given_up], both[1 - given_up], return_exceptions=True)

    assert isinstance(gone, asyncio.CancelledError)
    assert isinstance(other, psycopg.OperationalError)
    assert connection.closed


@pytest.mark.parametrize("given_up", [0, 1])
async def test_answers_that_have_arrived_for_a_cancelled_exchange_reach_no_other_exchange(
    connection: AsyncConnection, given_up: int
) -> None:
    words = (b"a", b"b", b"c")
    asked = [
        asyncio.create_task(exchange(connection, [Statement(b"SELECT $1::text", (word,))], pipelined=True))
        for word in words
    ]
    await asyncio.sleep(0)
    have_come(connection, 3)

    asked[given_up].cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)

    assert isinstance(answers[given_up], asyncio.CancelledError)
    for word, answer in zip(words, answers, strict=True):
        assert isinstance(answer, BaseException) or answer == [[(word,)]]
    assert connection.closed


@pytest.mark.parametrize("pipelined", [True, False])
async def test_an_exchange_that_is_not_answered_in_time_closes_the_connection(
    database_url: str, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch, *, pipelined: bool
) -> None:
    await owner_conn.execute("SELECT pg_advisory_lock(1)")
    async with await AnswerTimeoutConnection.connect(database_url, autocommit=True) as connection:
        monkeypatch.setattr(AnswerTimeoutConnection, "answer_s_max", 0.2)
        both = [asyncio.create_task(exchange(connection, [WAIT], pipelined=pipelined)) for _ in range(2)]

        await until(lambda: all(task.done() for task in both))

        assert [type(task.exception()) for task in both] == [psycopg.OperationalError] * 2
        assert connection.closed


async def test_pipelined_exchanges_leave_no_file_descriptors_open(connection: AsyncConnection) -> None:
    await exchange(connection, [NUMBERS])
    before = psutil.Process().num_fds()

    for _ in range(3):
        await asyncio.gather(*(exchange(connection, [NUMBERS], pipelined=True) for _ in range(2)))

    assert psutil.Process().num_fds() == before


async def test_cancelling_the_only_exchange_in_progress_leaves_the_connection_usable(
    connection: AsyncConnection, owner_conn: AsyncConnection
) -> None:
    await owner_conn.execute("SELECT pg_advisory_lock(1)")
    alone = asyncio.create_task(exchange(connection, [WAIT]))
    waiting = "SELECT FROM pg_locks WHERE pid = %s AND locktype = 'advisory' AND NOT granted"

    async def waits() -> bool:
        return (await owner_conn.execute(waiting, (connection.info.backend_pid,))).rowcount > 0

    # A cancel that comes before the statement has begun is lost, and the connection closed five seconds later.
    await until(waits)
    alone.cancel()

    with pytest.raises(asyncio.CancelledError):
        await alone
    assert await exchange(connection, [NUMBERS]) == [[(b"1", b"1x"), (b"2", b"2x")]]


async def find_it_dead_while_another_listens(database_url: str) -> None:
    """libpq closes its socket when it sends on a dead connection."""
    large = Statement(b"SELECT $1::text", (b"x" * 60_000,))
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        listening = asyncio.create_task(exchange(connection, [WAIT], pipelined=True))
        await asyncio.sleep(0)
        closed_descriptor = connection.pgconn.socket

        hang_up(connection)
        # In the same turn of the event loop, before the other exchange is notified.
        with pytest.raises(psycopg.OperationalError):
            exchange(connection, [large, large], pipelined=True).send(None)

        # A socket that gets the same descriptor next is not taken for it.
        with socket.socket() as other:
            assert other.fileno() == closed_descriptor
            with pytest.raises(psycopg.OperationalError):
                await listening
        assert connection.closed


async def test_an_exchange_that_finds_the_connection_dead_fails_the_exchanges_that_wait_on_it(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    await owner_conn.execute("SELECT pg_advisory_lock(1)")
    await find_it_dead_while_another_listens(database_url)


async def test_an_exchange_that_finds_the_connection_dead_does_not_end_its_process(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    """libuv ends a process that makes it watch a descriptor that is already closed."""
    await owner_conn.execute("SELECT pg_advisory_lock(1)")
    scenario = find_it_dead_while_another_listens
    code = f"import sys, uvloop; from {__name__} import {scenario.__name__} as it; uvloop.run(it(sys.argv[1]))"

    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, database_url, cwd=REPOSITORY)
    assert await process.wait() == 0
