"""Several prepared statements as one message, one transaction and one wait; and the next message before the last is answered.

psycopg's own pipeline flushes after each statement: a system call and a switch to the server for every one of them, which
is what a small append mostly consists of here. libpq does not ask for that; so the few lines that talk to it are our own.
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


def array(words: Iterable[str]) -> bytes:
    """A parameter that is an array of words which need no quotes, such as numbers."""
    return f"{{{','.join(words)}}}".encode()


def number(value: bytes | None) -> int:
    """A whole number that an answer has in text format."""
    assert value is not None, "the statement gives one"
    return int(value)


#: How often whoever waits for an answer looks up, as psycopg does.
_LOOK_UP_S: Final = 0.1

#: Where the server waits for its synchronous standbys (`synchronous_standby_names`) before it says that it has committed.
_WAIT_FOR_STANDBY: Final = "SyncRepWaitForLSN"

T = TypeVar("T")

Values = tuple[bytes | None, ...]
Rows = list[Values]

#: A name is never used twice: what was prepared before an error stays with the server, though we forget it.
_numbers = itertools.count(1)


class _Way:
    """The exchanges that are under way on one connection, one behind the other."""

    def __init__(self, connection: AsyncConnection) -> None:
        #: What the server has prepared: names by statement. They are few, because the statements are ours.
        self.prepared: dict[bytes, bytes] = {}
        #: Held by the exchange whose answers come next.
        self.turn = asyncio.Lock()
        self._count = 0
        #: Whether one of them was given up, so that its answers would be taken for those of the one behind it.
        self._is_given_up = False
        #: While exchanges follow each other: a duplicate of libpq's file descriptor, to listen on. libpq closes its own where it finds
        #: the connection dead as it sends. A loop that still listens on that number would then take for this connection whatever gets
        #: the number next; uvloop's ends the process.
        self.ear: int | None = None
        #: Whether the exchange whose turn it is was committed here, and then cancelled as it waited for a standby to have it, too.
        self.is_here_alone = False
        connection.add_notice_handler(self._notice)

    def _notice(self, notice: Diagnostic) -> None:
        # By the server's own name for the place: what it says is in its language.
        if notice.source_function == _WAIT_FOR_STANDBY:
            self.is_here_alone = True

    @asynccontextmanager
    async def joined(self, connection: AsyncConnection, *, follow: bool) -> AsyncGenerator[None]:
        """Around one exchange. The first one takes psycopg's lock and enters pipeline mode, and the last one undoes both. Those that
        do not `follow`, and psycopg's own commands, wait for that lock."""
        if not follow or self.ear is None:
            await connection.lock.acquire()
        self._count += 1
        try:
            if self._count == 1:
                connection.pgconn.enter_pipeline_mode()
                if follow:
                    # With no file descriptor left, nobody follows.
                    with suppress(OSError):
                        self.ear = os.dup(connection.pgconn.socket)
            yield
        finally:
            self._count -= 1
            if not self._count:
                if self.ear is not None:
                    os.close(self.ear)
                    self.ear = None
                self._is_given_up = False
                _leave_pipeline_mode(connection.pgconn)
                connection.lock.release()

    async def heard(self, connection: AsyncConnection, answers: PQGen[T]) -> T:
        """The result of `answers`. Raises psycopg's errors, also where an exchange before this one was given up."""
        if self._is_given_up:
            raise errors.OperationalError("an exchange before this one was given up")
        if self.ear is None:
            return await connection.wait(answers)
        with hanging_up(getattr(connection, "answer_s_max", inf), self.hang_up):
            return await waiting.wait_async(answers, self.ear, interval=_LOOK_UP_S)

    def give_up(self) -> None:
        """Have all exchanges behind this one fail: they would take its answers for theirs."""
        self._is_given_up = True
        self.hang_up()

    def hang_up(self) -> None:
        """Where exchanges follow each other: shut the connection down, so that whoever listens hears that it has ended."""
        if self.ear is not None:
            _shut_down(self.ear)


_ways: WeakKeyDictionary[AsyncConnection, _Way] = WeakKeyDictionary()


async def exchange(
    connection: AsyncConnection, statements: Sequence[Statement], *, prepared: bool = True, follow: bool = False
) -> list[Rows]:
    """Run all statements in one transaction, the one that is open or one of their own; the rows of each, in text format.

    While another exchange is under way on the same connection, this one waits for its end. With `follow` it is sent at once, so that
    the server goes straight on; each is still a transaction of its own. Where one that may be followed is given up, the connection is
    broken off, because nobody would read its answers. So is a connection with `answer_s_max` (`hydracore.db.answer_timeout`) on which the
    server says nothing for so many seconds.

    The server parses the statements anew each time where they are not to be `prepared`, and on a connection that may prepare nothing
    (`prepare_threshold` None: a pooler may hand out another session every time). They must not be prepared in a transaction that
    psycopg began, or in which it rolled back to a savepoint: with each rollback psycopg has the server drop all that is prepared,
    and a statement that is missing fails the whole transaction.

    Raises psycopg's errors; then nothing was done, or, when the connection broke, perhaps all of it. `QueryCanceled` is also raised
    where the commit was cancelled as it waited for a standby: the server calls that done, and would lose it with its disk.
    """
    way = _ways.get(connection)
    if way is None:
        way = _ways[connection] = _Way(connection)
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
        new = _send(connection.pgconn, known, statements)
        async with way.turn:
            way.is_here_alone = False
            results = await way.heard(connection, _answers(connection.pgconn))
            is_here_alone = way.is_here_alone
    except BaseException:
        # Answers are left that nobody reads, or part of a message was sent.
        way.give_up()
        raise
    answered, preparations = list[PGresult](), iter(new.items())
    for result in results:
        if result.status == ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(result)
        if result.command_status:
            answered.append(result)
        elif known is not None:
            # The answer to a preparation, which has neither rows nor a command tag. What was prepared stays, whatever becomes of the rest.
            sql, name = next(preparations)
            known[sql] = name
    if is_here_alone:
        raise errors.QueryCanceled("committed, and no standby is known to have it")
    return answered


@contextmanager
def hanging_up(limit_s: float, hang_up: Callable[[], None]) -> Generator[None]:
    """Have `hang_up` called once the block has taken `limit_s`."""
    timer = None if limit_s == inf else asyncio.get_running_loop().call_later(limit_s, hang_up)
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


def hang_up(connection: AsyncConnection) -> None:
    """Shut the connection down without closing it: whoever still waits for an answer is to hear that none will come."""
    if not connection.closed:
        _shut_down(connection.pgconn.socket)


async def break_off(connection: AsyncConnection) -> None:
    """Make the connection useless. It is closed at once, or by whoever listens on it: a loop must not listen on a closed socket."""
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


def _send(pgconn: PGconn, known: dict[bytes, bytes] | None, statements: Sequence[Statement]) -> dict[bytes, bytes]:
    """Give libpq the whole message, of which it sends what the kernel takes at once. Returns the statements that the message
    prepares, with their names."""
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
        while pgconn.is_busy():
            # Not psycopg's `fetch_many`, which only looks where the socket says something: whoever sends behind us may have taken in
            # what we wait for, as libpq does where it cannot send all at once.
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
        # Answers are to come that nobody waits for.
        pgconn.finish()


def _rows(result: PGresult) -> Rows:
    columns = range(result.nfields)
    return [tuple(result.get_value(row, column) for column in columns) for row in range(result.ntuples)]
