"""Translates database errors of a failed append into this package's errors."""

from __future__ import annotations

import psycopg
from psycopg_pool import AsyncConnectionPool

from events.errors import LogCorrupted, Rejected, ReservationTaken, StoreUnavailable
from events.record import Append
from events.retries import run
from events.sql import Statements

_SQL = Statements("events", "store.sql")
_HEAD_OUT_OF_RANGE = _SQL["head_out_of_range"]
_EVENT_WITHOUT_COMMAND = _SQL["event_without_command"]
_EVENT_OUT_OF_RANGE = _SQL["event_out_of_range"]

#: Lone surrogates; the NUL character and numbers out of range; texts too long for an index. Callers check their input before
#: (`hydracore.problems`), so this is a second line of defence.
_UNSTORABLE = (UnicodeEncodeError, psycopg.DataError, psycopg.errors.ProgramLimitExceeded)

#: Constraints whose violation means that a number of a lane is already taken.
_SEQ_CONSTRAINTS = frozenset({"event_pkey", "command_lane_first_seq"})


async def raise_translated(pool: AsyncConnectionPool, error: Exception, append: Append) -> None:
    """Raise this package's error for the database error `error`. Returns if there is none, so that the caller raises `error`.

    - `ReservationTaken`: another instance holds a unique value.
    - `Rejected`: `append` has something that the log cannot store.
    - `LogCorrupted`, with its place: the log has a time, or an event without a command, after which nothing can be appended.
    - `StoreUnavailable`: other sessions have appended in between.
    """
    if isinstance(error, psycopg.errors.UniqueViolation) and error.diag.constraint_name == "reservation_held":
        raise ReservationTaken(append.stream_id) from error
    if isinstance(error, psycopg.errors.UniqueViolation) and error.diag.constraint_name in _SEQ_CONSTRAINTS:
        for (seq,) in await run(pool, _EVENT_WITHOUT_COMMAND, (append.lane, append.lane)):
            raise LogCorrupted(
                append.lane,
                seq,
                f"the command of this event is missing, so nothing can be appended for {append.stream_id}",
            ) from error
        # The session's isolation level is higher than READ COMMITTED, so its snapshot is older than others' appends.
        raise StoreUnavailable("The instance or its lane was written to concurrently; try again") from error
    if isinstance(error, LogCorrupted):
        for (seq,) in await run(pool, _EVENT_OUT_OF_RANGE, (append.lane, append.stream_id)):
            what = f"stream {append.stream_id} has a time that is out of range"
            raise LogCorrupted(append.lane, seq, what) from error
    # A `recorded_at` that nothing can follow is out of range, or infinite and then not a number at all.
    if isinstance(error, psycopg.DataError | psycopg.NotSupportedError):
        for (head,) in await run(pool, _HEAD_OUT_OF_RANGE, (append.lane,)):
            what = f"it was recorded at a time that is out of range, so nothing can be appended for {append.stream_id}"
            raise LogCorrupted(append.lane, head, what) from error
    if isinstance(error, _UNSTORABLE):
        raise Rejected(
            append.stream_id,
            "The log cannot store this: it has an invalid character, or a number or text that is too large",
        ) from error
