"""Fold the log for a rebuild: COPY lanes out of the log, fold them, COPY the rows into the next generation's tables.

`fold_lanes` may run in any number of processes on any number of machines. It claims several lanes at once by locking
their rows, and marks them as folded in the same transaction that folds them. So a process that dies leaves nothing
behind, and another one folds its lanes. Memory is bounded: for inline projections by what `stream_assembly` holds of
incomplete streams, for followed projections by the sums of one lane.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from itertools import groupby, starmap
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection, sql

from events import pages
from events.errors import LogCorrupted
from events.ids import LANES, lane_of
from events.pacing import FACTOR_MAX, Pace
from events.sql import Statements, template
from projections import sql_fragments
from projections.copying import copy_in
from projections.definition import Followed, Inline, Projection, StreamFold
from projections.errors import EventRefused
from projections.fact import decode_list, payload_types, seq_of
from projections.generations import UNLIMITED_SESSION, Generation
from projections.spilling import EventBlock, lengths_of
from projections.stream_assembly import CHUNK, StreamRefused, Targets, rows_of
from projections.tables import LIVE, Row

_SQL = Statements("projections", "generations.sql")
_FOLD_SESSION = _SQL["fold_session"]
_CLAIM_SESSION = _SQL["claim_session"]
_CLAIM_LANES = _SQL["claim_lanes"]
_LANES_LEFT = _SQL["lanes_left"]
_LANES_FOLDED = _SQL["lanes_folded"]
_EVENTS_IN_LANES = _SQL["events_in_lanes"]
_LENGTHS_OF_STREAMS = _SQL["lengths_of_streams"]
_PARTS_OF_LANES = _SQL["parts_of_lanes"]
_FACTS = Statements("projections", "facts.sql")
_FACTS_BY_STREAM = _FACTS["facts_by_stream"]
_WITHOUT_COMMAND = _FACTS["without_command"]
_TYPE_AND_STREAM = _FACTS["type_and_stream"]

#: Lanes per claim: the default, and the maximum. A process that is killed loses the work of its whole claim.
LANES_AT_ONCE = 4
LANES_AT_ONCE_MAX = 32

#: Table pages that are read as one piece: some thousand events, or a few hundred where few lanes are read.
PAGES_PER_PIECE = 64

#: The most bytes of an event that shares its row of the COPY with others. With that bound, a row of some thousand
#: events is at most a few pages (`events/pages.py`) large.
SHARED_ROW_BYTES_MAX = pages.PAGE_BYTES // 1024

#: The most streams whose lengths are read in advance, which bounds memory. Any other stream is folded at the end.
LENGTHS_MAX = 500_000

#: The longest rest, as a multiple of the work before it. It is longer than for commands that only read, because a fold
#: uses two sessions and writes, so that it slows down writers more.
REST_FACTOR_MAX = 1.5 * FACTOR_MAX

#: The most seconds of rest per claim. The snapshot of the COPY stays open meanwhile.
RESTS_S_MAX = 600.0

#: The pause before the next try to claim lanes, in seconds, where others have claimed all lanes that are left.
RECHECK_S = 0.1


def fold_lanes(
    conninfo: str,
    projection: Projection,
    build: Generation,
    *,
    until_s: float | None = None,
    at_once: int = LANES_AT_ONCE,
    readers: int = 1,
    full_speed: bool = False,
) -> int:
    """Fold lanes of `build` until none is left, or until `until_s` (monotonic) has passed. Returns how many it folded.

    `at_once`: the most lanes per claim. `readers`: how many processes fold at the same time; all of them rest while
    others write to the log, unless `full_speed`.

    Returns at once where the code's version of the projection is not the build's. Raises `LogCorrupted`, `EventRefused`
    and psycopg's errors.
    """
    folded = 0
    with (
        psycopg.connect(conninfo, autocommit=True) as reader,
        psycopg.connect(conninfo, autocommit=True) as writer,
        # For looking at the lanes' heads: the other two connections are in the middle of a COPY then.
        psycopg.connect(conninfo, autocommit=True) as pacing_connection,
    ):
        for connection in (reader, writer, pacing_connection):
            connection.execute(UNLIMITED_SESSION)
        reader.execute(_FOLD_SESSION)
        writer.execute(_CLAIM_SESSION)
        path = sql.SQL("SET search_path TO {}, {}").format(sql.Identifier(build.schema), sql.Identifier(LIVE))
        writer.execute(path)
        key = build.key | {"version": projection.version, "limit": at_once}
        while until_s is None or time.monotonic() < until_s:
            pace = Pace(full_speed=full_speed, readers=readers, total_s_max=RESTS_S_MAX)
            if count := _fold_claim(
                reader, writer, projection, key, rest=partial(pace.rest, pacing_connection, factor_max=REST_FACTOR_MAX)
            ):
                folded += count
                continue
            left = writer.execute(_LANES_LEFT, key).fetchone()
            if left is None or left[0] == 0:
                break
            time.sleep(RECHECK_S)
    return folded


def _fold_claim(
    reader: Connection[Any],
    writer: Connection[Any],
    projection: Projection,
    key: dict[str, Any],
    *,
    rest: Callable[[], None],
) -> int:
    """Claim and fold some lanes. Returns how many; 0 where there were none to claim."""
    with writer.transaction():
        targets: Targets = dict(writer.execute(_CLAIM_LANES, key).fetchall())
        if not targets:
            return 0
        # The reading statements may see different ends of a lane. Each of them sees every event up to the lane's
        # target.
        if isinstance(projection, Inline):
            # Closed even if `copy_in` fails: a COPY that is not read to its end would occupy its connection for ever.
            with closing(_rows_of_streams(reader, projection, targets, rest)) as rows:
                copy_in(writer, projection.tables[0], rows)
        else:
            _fold_facts(reader, writer, projection, targets, rest)
        writer.execute(_LANES_FOLDED, key | {"lanes": list(targets)})
    return len(targets)


def _rows_of_streams(
    reader: Connection[Any], projection: Inline, targets: Targets, rest: Callable[[], None]
) -> Generator[Row]:
    def begin(stream_id: UUID) -> StreamFold:
        return projection.begin(stream_id, lane=lane_of(stream_id))

    known = reader.execute(_LENGTHS_OF_STREAMS, {"lanes": list(targets), "limit": LENGTHS_MAX}, binary=True).fetchone()
    lengths = {} if known is None else lengths_of(*known)
    query = _query(_PARTS_OF_LANES, targets, pages=PAGES_PER_PIECE, alone=SHARED_ROW_BYTES_MAX, payload_types=None)
    with closing(_copy_out(reader, query, rest)) as found:
        try:
            yield from rows_of(starmap(EventBlock, found), begin, targets=targets, lengths=lengths)
        except StreamRefused as refused:
            stream_id, error = refused.stream_id, refused.error
            raise EventRefused(projection.name, error, lane=lane_of(stream_id), stream_id=stream_id) from error


def _fold_facts(
    reader: Connection[Any],
    writer: Connection[Any],
    projection: Followed,
    targets: Targets,
    rest: Callable[[], None],
) -> None:
    lists = {"lanes": list(targets), "targets": list(targets.values())}
    for lane, target, count in reader.execute(_EVENTS_IN_LANES, lists):
        if count != target:
            raise LogCorrupted(lane, target, f"{count} events where {target} must be")
    refused: tuple[int, Exception] | None = None
    with closing(_copy_out(reader, _facts_of(projection, targets, chunk=CHUNK), rest)) as found:
        for key, chunks in groupby(found, key=lambda row: row[0]):
            fold = projection.begin()
            try:
                for _, chunk in chunks:
                    fold.feed(decode_list(chunk))
            except psycopg.Error:
                raise
            except Exception as error:  # noqa: BLE001 - `_error_of` needs the connection, which is in the COPY
                refused = int.from_bytes(key), error
                break
            rows = fold.rows()
            for table in projection.tables:
                copy_in(writer, table, rows[table.name])
    if refused is not None:
        lane, error = refused
        raise _error_of(reader, projection, lane, targets[lane], error) from error


def _error_of(reader: Connection[Any], projection: Followed, lane: int, target: int, error: Exception) -> Exception:
    """The exception to raise where the fold of `lane` failed with `error`.

    It names the event that is to blame: `LogCorrupted` where its command is missing, otherwise `EventRefused`. Where
    that event is not found, it is `error` itself.
    """
    # Looked for only now: to look before every fold would mean reading the commands twice.
    for _, seq in reader.execute(_WITHOUT_COMMAND, {"lanes": [lane], "targets": [target]}):
        return LogCorrupted(lane, seq, "its command is missing")
    fold = projection.begin()
    with closing(_copy_out(reader, _facts_of(projection, {lane: target}, chunk=1), lambda: None)) as found:
        for _, fact in found:
            try:
                fold.feed(decode_list(fact))
            except Exception as again:  # noqa: BLE001 - it is given back
                error, seq = again, seq_of(fact)
                break
        else:
            return error
    event = reader.execute(_TYPE_AND_STREAM, (lane, seq)).fetchone()
    if event is None:
        return error
    return EventRefused(projection.name, error, lane=lane, stream_id=event[1], seq=seq, tag=event[0])


def _facts_of(projection: Followed, targets: Targets, *, chunk: int) -> sql.Composed:
    types = None if projection.types is None else list(projection.types)
    wanted = {
        "name": projection.name,
        "version": projection.version,
        "types": types,
        "payload_types": payload_types([projection]),
    }
    return _query(_FACTS_BY_STREAM, targets, **wanted, chunk=chunk)


def _copy_out(reader: Connection[Any], query: sql.Composed, rest: Callable[[], None]) -> Generator[tuple[Any, ...]]:
    """Yield the rows of a COPY, as bytes. After each, once the caller is done with it, `rest` is called."""
    with reader.cursor() as cursor, cursor.copy(query) as copy:
        for row in copy.rows():
            yield row
            rest()


def _query(statement: bytes, targets: Targets, **values: Any) -> sql.Composed:
    """COPY takes no parameters: the values are quoted into it."""
    literals = {
        "lanes": list(targets),
        "targets": [targets.get(lane, 0) for lane in range(LANES)],
        "bytes": pages.PAGE_BYTES,
        **values,
    }
    quoted = {name: sql.Literal(value) for name, value in literals.items()}
    fact, weight = sql_fragments.fact(quoted["payload_types"]), sql_fragments.weight(quoted["payload_types"])
    return template(statement).format(payload=sql_fragments.payload(), fact=fact, weight=weight, **quoted)
