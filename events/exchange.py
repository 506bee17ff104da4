"""Several prepared statements as one message, one transaction and one wait; and the next message before the last is answered.

psycopg's own pipeline flushes after each statement: a system call and a switch to the server for every one of them, which
is what a small append mostly consists of here. libpq does not ask for that; so the few lines that talk to it are our own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
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

#: A name is never used twice: what was prepared before an error stays with the server, though we forget it.
_numbers = itertools.count(1)


class _Way:
    """The exchanges that are under way on one connection, one behind the other."""

    def __init__(self) -> None:
        #: What the server has prepared: names by statement. They are few, because the statements are ours.
        self.prepared: dict[bytes, bytes] = {}
        #: Held by the exchange whose answers come next.
        self.turn = asyncio.Lock()
        self.count = 0
        #: Numbers of closed sockets that are kept from others, for as long as somebody may listen there.
        self.kept: list[int] = []

    @asynccontextmanager
    async def joined(self, connection: AsyncConnection, *, follow: bool) -> AsyncGenerator[None]:
        """Others, and psycopg's own commands, wait until nobody is on the way any more."""
        if not (follow and self.count):
            await connection.lock.acquire()
        self.count += 1
        try:
            if self.count == 1:
                connection.pgconn.enter_pipeline_mode()
            yield
        finally:
            self.count -= 1
            if not self.count:
                while self.kept:
                    os.close(self.kept.pop())
                _leave_pipeline_mode(connection.pgconn)
                connection.lock.release()


_ways: WeakKeyDictionary[AsyncConnection, _Way] = WeakKeyDictionary()


async def exchange(
    connection: AsyncConnection, statements: Sequence[Statement], *, prepared: bool = True, follow: bool = False
) -> list[Rows]:
    """Run all statements in one transaction, the one that is open or one of their own; the rows of each, in text format.

    While another is under way on the same connection, this waits; or it is to `follow` without waiting for the other's answers: the
    server goes on at once. Each is still a transaction of its own. Where one is given up while others are under way, the connection
    is broken off, because nobody would read its answers.

    On a connection that may prepare nothing (`prepare_threshold` None: a pooler may hand out another session every time) the
    server parses them anew, as where they are not to be `prepared`. That they must not be in a transaction that psycopg began, or in
    which it rolled back to a savepoint: with each rollback it has the server drop everything that is prepared, which in the midst
    of a transaction nobody can mend. Raises psycopg's errors; then nothing was done, or, when the connection broke, perhaps all of it.
    """
    way = _ways.get(connection)
    if way is None:
        way = _ways[connection] = _Way()
    known = way.prepared if prepared and connection.prepare_threshold is not None else None
    async with way.joined(connection, follow=follow):
        try:
            results = await _exchanged(connection, way, known, statements)
        except errors.InvalidSqlStatementName:
            if known is None:
                raise
            # After a rollback of psycopg's. The first statement failed, so that no transaction is open.
            known.clear()
            results = await _exchanged(connection, way, known, statements)
    assert len(results) == len(statements), "one result a statement"
    return [_rows(result) for result in results]


async def _exchanged(
    connection: AsyncConnection, way: _Way, known: dict[bytes, bytes] | None, statements: Sequence[Statement]
) -> list[PGresult]:
    try:
        socket_number = connection.pgconn.socket
        try:
            new = _send(connection.pgconn, known, statements)
        finally:
            if way.count > 1 and not _is_open(socket_number):
                way.kept.append(_keep(socket_number))
        async with way.turn:
            results = await connection.wait(_answers(connection.pgconn))
    except BaseException:
        if way.count > 1:
            hang_up(connection)
        raise
    for result in results:
        if result.status == ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(result)
    if known is not None:
        known.update(new)
    # The answers to a preparation have neither rows nor a command tag.
    return [result for result in results if result.command_status]


def hang_up(connection: AsyncConnection) -> None:
    """Break it off. Not closed: whoever waits for an answer still listens there, and is to hear that nothing more comes."""
    if connection.closed:
        return
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as ours, suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)


def _is_open(socket_number: int) -> bool:
    try:
        os.fstat(socket_number)
    except OSError:
        return False
    return True


def _keep(socket_number: int) -> int:
    """Whoever listens on a socket that libpq has closed as it was to send is not to take the next of that number for it."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    if nothing != socket_number:
        os.dup2(nothing, socket_number, inheritable=False)
        os.close(nothing)
    return socket_number


def _send(pgconn: PGconn, known: dict[bytes, bytes] | None, statements: Sequence[Statement]) -> dict[bytes, bytes]:
    """Give libpq the message, and the kernel as much of it as it takes at once; what is to be prepared by it."""
    new: dict[bytes, bytes] = {}
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
    return new


def _answers(pgconn: PGconn) -> PQGen[list[PGresult]]:
    yield from generators.send(pgconn)
    return (yield from _until_sync(pgconn))


def _until_sync(pgconn: PGconn) -> PQGen[list[PGresult]]:
    results: list[PGresult] = []
    while True:
        found = yield from generators.fetch_many(pgconn)
        if found and found[0].status == ExecStatus.PIPELINE_SYNC:
            return results
        results += found


def _leave_pipeline_mode(pgconn: PGconn) -> None:
    if pgconn.status == ConnStatus.BAD:
        return
    try:
        pgconn.exit_pipeline_mode()
    except errors.OperationalError:
        # Answers are to come that nobody waits for.
        pgconn.finish()


def _rows(result: PGresult) -> Rows:
    columns = range(result.nfields)
    return [tuple(result.get_value(row, column) for column in columns) for row in range(result.ntuples)]
