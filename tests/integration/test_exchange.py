"""Statements that travel together: one transaction, whole or not at all, whatever the connection has been through."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import psycopg
import pytest
from psycopg import AsyncConnection

from events.exchange import Statement, exchange

NUMBERS = Statement(b"SELECT n, n::text || 'x' FROM generate_series(1, $1::integer) AS n ORDER BY n", (b"2",))
ADD = b"INSERT INTO noted (word) VALUES ($1)"


@pytest.fixture
async def connection(database_url: str) -> AsyncGenerator[AsyncConnection]:
    async with await AsyncConnection.connect(database_url, autocommit=True) as opened:
        await opened.execute("CREATE TEMPORARY TABLE noted (word text CHECK (word <> 'bad'))")
        yield opened


async def noted(connection: AsyncConnection) -> list[str]:
    return [word for (word,) in await (await connection.execute("SELECT word FROM noted ORDER BY word")).fetchall()]


async def test_each_statement_gives_its_own_rows(connection: AsyncConnection) -> None:
    for _ in range(2):  # First prepared, then known.
        answers = await exchange(connection, [NUMBERS, Statement(ADD, (b"a",)), Statement(b"SELECT NULL", ())])

        assert answers == [[(b"1", b"1x"), (b"2", b"2x")], [], [(None,)]]
    assert await noted(connection) == ["a", "a"]


async def test_one_bad_statement_undoes_them_all_and_the_next_exchange_works(connection: AsyncConnection) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        await exchange(connection, [Statement(ADD, (b"good",)), Statement(ADD, (b"bad",)), NUMBERS])

    assert await noted(connection) == []
    assert await exchange(connection, [Statement(ADD, (b"better",)), NUMBERS]) == [[], [(b"1", b"1x"), (b"2", b"2x")]]
    assert await noted(connection) == ["better"]


async def test_what_the_server_was_told_to_forget_is_prepared_again(connection: AsyncConnection) -> None:
    await exchange(connection, [Statement(ADD, (b"a",))])
    await connection.execute("DEALLOCATE ALL")

    await exchange(connection, [Statement(ADD, (b"b",))])

    assert await noted(connection) == ["a", "b"]


async def test_an_open_transaction_is_joined(connection: AsyncConnection) -> None:
    await connection.execute("BEGIN")
    await exchange(connection, [Statement(ADD, (b"a",))])
    await connection.execute("ROLLBACK")

    assert await noted(connection) == []


async def test_a_connection_that_breaks_says_so(connection: AsyncConnection, owner_conn: AsyncConnection) -> None:
    await exchange(connection, [NUMBERS])
    await owner_conn.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))

    with pytest.raises(psycopg.OperationalError):
        await exchange(connection, [NUMBERS])

    assert connection.closed
