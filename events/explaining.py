"""Why an append failed, in our own errors."""

from __future__ import annotations

import psycopg
from psycopg_pool import AsyncConnectionPool

from events.errors import LogCorrupted, Rejected, ReservationTaken, StoreUnavailable
from events.patience import run
from events.record import Append
from events.sql import Statements

_SQL = Statements("events", "store.sql")
_HEAD_NEVER = _SQL["head_never"]
_OF_NO_COMMAND = _SQL["of_no_command"]
_EVENT_NEVER = _SQL["event_never"]

#: Half characters; the NUL character and numbers out of range; texts too long for an index. Callers check for all of
#: these before (`hydracore.problems`): this is for the one that they forgot.
_UNSTORABLE = (UnicodeEncodeError, psycopg.DataError, psycopg.errors.ProgramLimitExceeded)

#: What says that a number of a lane was given before.
_NUMBERS = frozenset({"event_pkey", "command_lane_first_seq"})


async def explain(pool: AsyncConnectionPool, error: Exception, append: Append) -> None:
    """Return where `error` speaks for itself.

    Raises `ReservationTaken`, `Rejected` where `append` holds what no log can store, `LogCorrupted` with its place where the log
    holds a time, or an event of no command, that nothing can follow, and `StoreUnavailable`.
    """
    if isinstance(error, psycopg.errors.UniqueViolation) and error.diag.constraint_name == "reservation_held":
        raise ReservationTaken(append.stream_id) from error
    if isinstance(error, psycopg.errors.UniqueViolation) and error.diag.constraint_name in _NUMBERS:
        for (seq,) in await run(pool, _OF_NO_COMMAND, (append.lane, append.lane)):
            raise LogCorrupted(
                append.lane, seq, f"its command is missing, and {append.stream_id} is to follow it"
            ) from error
        # A session whose transactions see what was there as they began, because nobody told it otherwise.
        raise StoreUnavailable("Others have written there meanwhile; try again") from error
    if isinstance(error, LogCorrupted):
        for (seq,) in await run(pool, _EVENT_NEVER, (append.lane, append.stream_id)):
            what = f"stream {append.stream_id} has a time that no calendar has"
            raise LogCorrupted(append.lane, seq, what) from error
    # What no event can be recorded after is a number out of range or, where it is infinite, no number at all.
    if isinstance(error, psycopg.DataError | psycopg.NotSupportedError):
        for (head,) in await run(pool, _HEAD_NEVER, (append.lane,)):
            what = f"it was recorded at a time that no calendar has, and {append.stream_id} is to follow it"
            raise LogCorrupted(append.lane, head, what) from error
    if isinstance(error, _UNSTORABLE):
        raise Rejected(
            append.stream_id, "It holds a character, a number or a text that the log cannot store"
        ) from error
