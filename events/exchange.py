"""Sends several prepared statements as one message and one transaction. The next message may be sent before the last is answered.

psycopg's own pipeline flushes after each statement. That costs a system call and a switch to the server for each, most of the time of
a small append. libpq does not require it, so this module talks to libpq itself.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from math import inf
from typing import Final, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from psycopg import AsyncConnection, errors, generators, waiting
from psycopg.abc import PQGen
from psycopg.errors import Diagnostic
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGconn, PGresult


class Statement(NamedTuple):
    """`sql` with `$1`, `$2`... and the parameters in text format."""

    sql: bytes
    parameters: Sequence[bytes | None]


def array_literal(words: Iterable[str]) -> bytes:
    """A parameter that is an array. Its `words`, such as numbers, must need no quotes."""
    return f"{{{','.join(words)}}}".encode()


def parse_int(value: bytes | None) -> int:
    """A whole number from a result in text format. It must not be null."""
    assert value is not None, "the statement gives one"
    return int(value)


#: How often a wait for an answer wakes up without one, as psycopg's does.
_POLL_S: Final = 0.1

#: Where the server waits for its synchronous standbys (`synchronous_standby_names`) before it says that it has committed.
_WAIT_FOR_STANDBY: Final = "SyncRepWaitForLSN"

T = TypeVar("T")

Values = tuple[bytes | None, ...]
Rows = list[Values]

#: Numbers of prepared statements. A name is never used twice: after an error, the server keeps statements that were forgotten here.
_numbers = itertools.count(1)


class _Pipeline:
    """The exchanges that are under way on one connection, in order."""

    def __init__(self, connection: AsyncConnection) -> None:
        #: The names of the statements that the server has prepared, by statement. They are few, because the statements are ours.
        self.prepared: dict[bytes, bytes] = {}
        #: Held by the exchange that receives its answers.
        self.receive_lock = asyncio.Lock()
        self._count = 0
        #: Whether an exchange was aborted, so that the next one would receive its answers.
        self._is_aborted = False
        #: While exchanges are pipelined: a duplicate of libpq's file descriptor, to listen on. If libpq finds the connection dead as it
        #: sends, it closes its own. An event loop that still listened on that number would take the file that gets the number next for
        #: this connection; uvloop's loop ends the process.
        self.listen_fd: int | None = None
        #: Whether the exchange that receives its answers was committed on the server, but cancelled as it waited for a standby.
        self.lacks_standby = False
        connection.add_notice_handler(self._notice)

    def _notice(self, notice: Diagnostic) -> None:
        # Recognized by the name of the server's function, because the message is in the server's language.
        if notice.source_function == _WAIT_FOR_STANDBY:
            self.lacks_standby = True

    @asynccontextmanager
    async def enter(self, connection: AsyncConnection, *, pipelined: bool) -> AsyncGenerator[None]:
        """Wraps one exchange. The first one takes psycopg's lock and enters pipeline mode, and the last one undoes both. Exchanges that
        are not `pipelined`, and psycopg's own commands, wait for that lock.
        """
        if not pipelined or self.listen_fd is None:
            await connection.lock.acquire()
        self._count += 1
        try:
            if self._count == 1:
                connection.pgconn.enter_pipeline_mode()
                if pipelined:
                    # Without a free file descriptor, the next exchange waits for the lock instead.
                    with suppress(OSError):
                        self.listen_fd = os.dup(connection.pgconn.socket)
            yield
        finally:
            self._count -= 1
            if not self._count:
                if self.listen_fd is not None:
                    os.close(self.listen_fd)
                    self.listen_fd = None
                self._is_aborted = False
                _leave_pipeline_mode(connection.pgconn)
                connection.lock.release()

    async def receive(self, connection: AsyncConnection, answers: PQGen[T]) -> T:
        """The result of `answers`. Raises psycopg's errors, also if an exchange before this one was aborted."""
        if self._is_aborted:
            raise errors.OperationalError("an exchange before this one was given up")
        if self.listen_fd is None:
            return await connection.wait(answers)
        with hang_up_after(getattr(connection, "answer_s_max", inf), self.hang_up):
            return await waiting.wait_async(answers, self.listen_fd, interval=_POLL_S)

    def abort(self) -> None:
        """Make all later exchanges fail, because they would receive the answers of this one."""
        self._is_aborted = True
        self.hang_up()

    def hang_up(self) -> None:
        """While exchanges are pipelined: shut the connection down, so that those that wait for an answer learn that it has ended."""
        if self.listen_fd is not None:
            _shut_down(self.listen_fd)


_pipelines: WeakKeyDictionary[AsyncConnection, _Pipeline] = WeakKeyDictionary()


async def exchange(
    connection: AsyncConnection, statements: Sequence[Statement], *, prepared: bool = True, pipelined: bool = False
) -> list[Rows]:
    """Run all statements in one transaction: the open one or a new one. Returns the rows of each statement, in text format.

    While another exchange is under way on the connection, this one waits until it ends. If `pipelined`, it is sent at once, so that
    the server starts it without a pause; each is still a transaction of its own. If a pipelined exchange is cancelled, the connection
    is shut down, because nobody would read its answers. So is a connection with `answer_s_max` (`hydracore.db.answer_timeout`) on which the
    server is silent for that many seconds.

    The server parses the statements each time if they are not to be `prepared`, or if the connection may prepare nothing
    (`prepare_threshold` None: a pooler may use another session each time). They must not be prepared in a transaction that psycopg
    began, or in which it rolled back to a savepoint: with each rollback psycopg has the server drop all prepared statements, and a
    statement that is missing fails the whole transaction.

    Raises psycopg's errors. Then nothing was done; only if the connection broke, everything may have been. `QueryCanceled` is also
    raised if the commit was cancelled as it waited for a standby: the server reports it as done, but would lose it with its disk.
    """
    pipeline = _pipelines.get(connection)
    if pipeline is None:
        pipeline = _pipelines[connection] = _Pipeline(connection)
    names = pipeline.prepared if prepared and connection.prepare_threshold is not None else None
    async with pipeline.enter(connection, pipelined=pipelined):
        try:
            results = await _exchange(connection, pipeline, names, statements)
        except errors.InvalidSqlStatementName:
            if names is None:
                raise
            # psycopg has rolled back. The first statement failed, so no transaction is open.
            names.clear()
            results = await _exchange(connection, pipeline, names, statements)
    assert len(results) == len(statements), "one result a statement"
    return [_rows(result) for result in results]


async def _exchange(
    connection: AsyncConnection, pipeline: _Pipeline, names: dict[bytes, bytes] | None, statements: Sequence[Statement]
) -> list[PGresult]:
    try:
        new = _send(connection.pgconn, names, statements)
        async with pipeline.receive_lock:
            pipeline.lacks_standby = False
            results = await pipeline.receive(connection, _answers(connection.pgconn))
            lacks_standby = pipeline.lacks_standby
    except BaseException:
        # Answers are left that nobody will read, or only a part of the message was sent.
        pipeline.abort()
        raise
    answered, preparations = list[PGresult](), iter(new.items())
    for result in results:
        if result.status == ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(result)
        if result.command_status:
            answered.append(result)
        elif names is not None:
            # The answer to a PREPARE, which has neither rows nor a command tag. The statement stays prepared even if others fail.
            sql, name = next(preparations)
            names[sql] = name
    if lacks_standby:
        raise errors.QueryCanceled("committed, and no standby is known to have it")
    return answered


@contextmanager
def hang_up_after(limit_s: float, hang_up: Callable[[], None]) -> Generator[None]:
    """Have `hang_up` called once the block has taken `limit_s`."""
    timer = None if limit_s == inf else asyncio.get_running_loop().call_later(limit_s, hang_up)
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


def hang_up(connection: AsyncConnection) -> None:
    """Shut the connection down without closing it, so that those that wait for an answer learn that none will come."""
    if not connection.closed:
        _shut_down(connection.pgconn.socket)


async def disconnect(connection: AsyncConnection) -> None:
    """End the connection. It is closed at once or, if an exchange listens on it, by that: a loop must not listen on a closed socket."""
    hang_up(connection)
    if not connection.lock.locked():
        await connection.close()


def _shut_down(socket_number: int) -> None:
    borrowed = socket.socket(fileno=socket_number)
    try:
        with suppress(OSError):
            borrowed.shutdown(socket.SHUT_RDWR)
    finally:
        borrowed.detach()


def _send(pgconn: PGconn, names: dict[bytes, bytes] | None, statements: Sequence[Statement]) -> dict[bytes, bytes]:
    """Give libpq the whole message. It sends what the kernel accepts at once. Returns the names of the statements that it prepares."""
    new: dict[bytes, bytes] = {}
    for sql, parameters in statements:
        if names is None:
            pgconn.send_query_params(sql, parameters)
            continue
        name = names.get(sql) or new.get(sql)
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
        while pgconn.is_busy():
            # Not psycopg's `fetch_many`, which reads only when the socket has data: the task that sends the next message may have read
            # our answer already, as libpq does if it cannot send everything at once.
            if (yield waiting.WAIT_R):
                pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            # The end of one statement's results.
            if pgconn.status == ConnStatus.BAD:
                raise errors.OperationalError(pgconn.get_error_message())
        elif result.status == ExecStatus.PIPELINE_SYNC:
            return results
        else:
            results.append(result)


def _leave_pipeline_mode(pgconn: PGconn) -> None:
    if pgconn.status == ConnStatus.BAD:
        return
    try:
        pgconn.exit_pipeline_mode()
    except errors.OperationalError:
        # Answers are still to come, and nobody waits for them.
        pgconn.finish()


def _rows(result: PGresult) -> Rows:
    columns = range(result.nfields)
    return [tuple(result.get_value(row, column) for column in columns) for row in range(result.ntuples)]
