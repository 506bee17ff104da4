"""Statements that are sent together are one transaction, applied completely or not at all, whatever happened on the connection before."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg import AsyncConnection

from events.exchange import Statement, disconnect, exchange
from tests.exchange_fixtures import ADD, NUMBERS, WAIT, connection_fixture, noted_words
from tests.waiting import until

__all__ = ["connection_fixture"]


async def test_each_statement_gives_its_own_rows(connection: AsyncConnection) -> None:
    for _ in range(2):  # The first time they are prepared, the second time they are reused.
        answers = await exchange(connection, [NUMBERS, Statement(ADD, (b"a",)), Statement(b"SELECT NULL", ())])

        assert answers == [[(b"1", b"1x"), (b"2", b"2x")], [], [(None,)]]
    assert await noted_words(connection) == ["a", "a"]


async def test_one_statement_may_be_sent_twice_with_different_parameters(connection: AsyncConnection) -> None:
    words = [Statement(b"SELECT $1::text", (word,)) for word in (b"a", b"b")]

    for _ in range(2):
        assert await exchange(connection, [*words, NUMBERS]) == [[(b"a",)], [(b"b",)], [(b"1", b"1x"), (b"2", b"2x")]]


async def test_one_failing_statement_undoes_the_whole_exchange_and_the_next_exchange_works(
    connection: AsyncConnection,
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        await exchange(connection, [Statement(ADD, (b"good",)), Statement(ADD, (b"bad",)), NUMBERS])

    assert await noted_words(connection) == []
    assert await exchange(connection, [Statement(ADD, (b"better",)), NUMBERS]) == [[], [(b"1", b"1x"), (b"2", b"2x")]]
    assert await noted_words(connection) == ["better"]


async def test_statements_that_the_server_has_deallocated_are_prepared_again(connection: AsyncConnection) -> None:
    await exchange(connection, [Statement(ADD, (b"a",))])
    await connection.execute("DEALLOCATE ALL")

    await exchange(connection, [Statement(ADD, (b"b",))])

    assert await noted_words(connection) == ["a", "b"]


async def test_a_statement_that_a_failed_exchange_prepared_is_not_prepared_again(connection: AsyncConnection) -> None:
    for _ in range(3):
        with pytest.raises(psycopg.Error):
            await exchange(connection, [Statement(ADD, (b"bad",))])

    cursor = await connection.execute("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'hydracore%'")
    assert await cursor.fetchone() == (1,)


async def test_nothing_stays_prepared_on_a_connection_with_prepare_threshold_none(database_url: str) -> None:
    async with await AsyncConnection.connect(database_url, autocommit=True, prepare_threshold=None) as connection:
        for _ in range(2):
            assert await exchange(connection, [NUMBERS]) == [[(b"1", b"1x"), (b"2", b"2x")]]

        prepared = "SELECT count(*) FROM pg_prepared_statements"
        assert await (await connection.execute(prepared)).fetchone() == (0,)


async def test_a_disconnected_connection_is_closed_by_the_exchange_that_waits_on_it(
    connection: AsyncConnection, owner_conn: AsyncConnection
) -> None:
    await owner_conn.execute("SELECT pg_advisory_lock(1)")
    waiting = asyncio.create_task(exchange(connection, [WAIT]))
    await until(connection.lock.locked)

    await disconnect(connection)

    assert not connection.closed
    with pytest.raises(psycopg.OperationalError):
        await waiting
    assert connection.closed


async def test_an_exchange_joins_an_open_transaction(connection: AsyncConnection) -> None:
    await connection.execute("BEGIN")
    await exchange(connection, [Statement(ADD, (b"a",))])
    await connection.execute("ROLLBACK")

    assert await noted_words(connection) == []


async def test_a_broken_connection_raises_an_operational_error_and_is_closed(
    connection: AsyncConnection, owner_conn: AsyncConnection
) -> None:
    await exchange(connection, [NUMBERS])
    await owner_conn.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))

    with pytest.raises(psycopg.OperationalError):
        await exchange(connection, [NUMBERS])

    assert connection.closed
