"""Which database errors are retried, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg_pool import PoolTimeout

from events.errors import StoreUnavailable
from events.retries import is_transient, with_retries

PATIENCE_S = 0.3


class Exhausted:
    """A pool whose only connection breaks, and which has none to lend after that."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncGenerator[AsyncConnection]:  # noqa: ASYNC109 - as a pool has it
        assert timeout is not None
        self.asked_s.append(timeout)
        if len(self.asked_s) == 1:
            yield cast("AsyncConnection", None)
        await asyncio.sleep(timeout)
        raise PoolTimeout

    async def check(self) -> None:
        pass


async def test_a_connection_is_awaited_no_longer_than_work_is_retried() -> None:
    pool = Exhausted()

    async def work(_connection: AsyncConnection) -> None:
        await asyncio.sleep(PATIENCE_S / 2)
        raise psycopg.OperationalError

    with pytest.raises(StoreUnavailable, match="does not answer"):
        await with_retries(pool, work, retry_s_max=PATIENCE_S)

    first, *later = pool.asked_s
    assert first <= PATIENCE_S
    assert later
    assert max(later) <= PATIENCE_S / 2


async def test_a_read_only_database_is_reported_as_a_standby() -> None:
    async def work(_connection: AsyncConnection) -> None:
        raise psycopg.errors.ReadOnlySqlTransaction

    with pytest.raises(StoreUnavailable, match="takes no writes: it is a standby"):
        await with_retries(Exhausted(), work, retry_s_max=PATIENCE_S)


@pytest.mark.parametrize(
    "sqlstate",
    [
        pytest.param("08006", id="a connection that broke"),
        pytest.param("28P01", id="a password that is just being changed"),
        pytest.param("40P01", id="a deadlock"),
        pytest.param("53300", id="too many connections"),
        pytest.param("53100", id="a full disk"),
        pytest.param("55P03", id="a lock that was waited for too long"),
        pytest.param("57P01", id="a server that stops"),
        pytest.param("57P03", id="a server that starts"),
        pytest.param("58030", id="a disk that fails"),
        pytest.param("25P03", id="a lease that was held for too long"),
        pytest.param("25P04", id="a lease that took too long"),
        pytest.param("25006", id="a standby that is about to take over"),
    ],
)
def test_errors_about_the_state_of_the_database_are_transient(sqlstate: str) -> None:
    assert is_transient(psycopg.errors.lookup(sqlstate)())


@pytest.mark.parametrize(
    "sqlstate",
    [
        pytest.param("54000", id="more than an index takes"),
        pytest.param("22003", id="a number that is too large"),
        pytest.param("23505", id="a key that is there"),
        pytest.param("42P01", id="a table that is not there"),
    ],
)
def test_errors_about_a_statement_are_not_transient(sqlstate: str) -> None:
    assert not is_transient(psycopg.errors.lookup(sqlstate)())


@pytest.mark.parametrize("error", [psycopg.OperationalError, psycopg.InterfaceError])
def test_a_connection_error_without_an_sqlstate_is_transient(error: type[psycopg.Error]) -> None:
    assert is_transient(error())
    assert not is_transient(psycopg.ProgrammingError())
