"""Several prepared statements as one message, one transaction and one wait.

psycopg's own pipeline flushes after each statement: a system call and a switch to the server for every one of them, which
is what a small append mostly consists of here. libpq does not ask for that; so the few lines that talk to it are our own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple
from weakref import WeakKeyDictionary

from psycopg import AsyncConnection, errors, generators
from psycopg.abc import PQGen
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGconn, PGresult


class Statement(NamedTuple):
    """`sql` with `$1`, `$2`... and the parameters in text format."""

    sql: bytes
    parameters: Sequence[bytes | None]


def array(words: Iterable[str]) -> bytes:
    """A parameter that is an array of words which need no quotes, such as numbers."""
    return f"{{{','.join(words)}}}".encode()


def number(value: bytes | None) -> int:
    """A whole number that an answer has in text format."""
    assert value is not None, "the statement gives one"
    return int(value)


Values = tuple[bytes | None, ...]
Rows = list[Values]

#: What each connection has prepared: names by statement. They are few, because the statements are ours.
_prepared: WeakKeyDictionary[AsyncConnection, dict[bytes, bytes]] = WeakKeyDictionary()

#: A name is never used twice: what was prepared before an error stays with the server, though we forget it.
_numbers = itertools.count(1)


async def exchange(
    connection: AsyncConnection, statements: Sequence[Statement], *, prepared: bool = True
) -> list[Rows]:
    """Run all statements in one transaction, the one that is open or one of their own; the rows of each, in text format.

    On a connection that may prepare nothing (`prepare_threshold` None: a pooler may hand out another session every time) the
    server parses them anew, as where they are not to be `prepared`. That they must not be in a transaction that psycopg began, or in
    which it rolled back to a savepoint: with each rollback it has the server drop everything that is prepared, which in the midst
    of a transaction nobody can mend. Raises psycopg's errors; then nothing was done, or, when the connection broke, perhaps all of it.
    """
    may_prepare = prepared and connection.prepare_threshold is not None
    known = _prepared.setdefault(connection, {}) if may_prepare else None
    async with connection.lock:
        try:
            results = await connection.wait(_exchanged(connection.pgconn, known, statements))
        except errors.InvalidSqlStatementName:
            if known is None:
                raise
            # After a rollback of psycopg's. The first statement failed, so that no transaction is open.
            known.clear()
            results = await connection.wait(_exchanged(connection.pgconn, known, statements))
    assert len(results) == len(statements), "one result a statement"
    return [_rows(result) for result in results]


def _exchanged(
    pgconn: PGconn, known: dict[bytes, bytes] | None, statements: Sequence[Statement]
) -> PQGen[list[PGresult]]:
    new: dict[bytes, bytes] = {}
    pgconn.enter_pipeline_mode()
    try:
        for sql, parameters in statements:
            if known is None:
                pgconn.send_query_params(sql, parameters)
                continue
            name = known.get(sql) or new.get(sql)
            if name is None:
                name = new[sql] = b"hydracore_%d" % next(_numbers)
                pgconn.send_prepare(name, sql)
            pgconn.send_query_prepared(name, parameters)
        pgconn.pipeline_sync()
        yield from generators.send(pgconn)
        results = yield from _until_sync(pgconn)
    finally:
        if pgconn.status != ConnStatus.BAD:
            with suppress(errors.OperationalError):
                pgconn.exit_pipeline_mode()
    for result in results:
        if result.status == ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(result)
    if known is not None:
        known.update(new)
    # The answers to a preparation have neither rows nor a command tag.
    return [result for result in results if result.command_status]


def _until_sync(pgconn: PGconn) -> PQGen[list[PGresult]]:
    results: list[PGresult] = []
    while True:
        found = yield from generators.fetch_many(pgconn)
        if found and found[0].status == ExecStatus.PIPELINE_SYNC:
            return results
        results += found


def _rows(result: PGresult) -> Rows:
    columns = range(result.nfields)
    return [tuple(result.get_value(row, column) for column in columns) for row in range(result.ntuples)]
