"""Update the rows of an inline projection from new events.

The fold of each stream is kept between steps, so that a step reads new events only, however long the stream is. A
stream without a kept fold is folded from its beginning: the first time, and after its fold was discarded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection, sql

from events import pages
from events.bounded_cache import BoundedCache
from events.errors import LogCorrupted
from events.sql import Statements, identifiers, template
from projections import sql_fragments
from projections.copying import copy_in_async
from projections.definition import Inline, StreamFold
from projections.errors import EventRefused
from projections.tables import Row, Table

_SQL = Statements("projections", "refolding.sql")
_GROWN = _SQL["grown"]
_PIECES = template(_SQL["pieces"])
_STAGE = template(_SQL["stage"])
_REPLACE = template(_SQL["replace"])

#: The most events per batch. Bounds memory, whatever the number of streams and their length.
EVENTS_MAX = 1_000

#: The most folds that are kept, and about the most bytes that they hold. The least recently used ones are discarded.
KEPT_MAX = 5_000
KEPT_BYTES_MAX = 64 * 2**20

#: The temporary table for changed rows, until all of them are known.
_STAGED = "changed_rows"

Stream = tuple[int, UUID]
"""A lane, and the id of a stream in it."""


class KeptFolds:
    """The folds of one build that are kept between its steps."""

    def __init__(self) -> None:
        self._folds = BoundedCache[Stream, tuple[int, StreamFold]](count_max=KEPT_MAX, bytes_max=KEPT_BYTES_MAX)

    def version(self, stream: Stream, *, before: int) -> int:
        """The version that the kept fold of `stream` has reached; 0 where it has to be folded from its beginning.

        `before`: the version up to which the build has applied the stream.
        """
        version, _ = self._folds.get(stream) or (0, None)
        # A fold beyond `before` comes from a step that was rolled back.
        return version if version <= before else 0

    def pop(self, stream: Stream) -> StreamFold | None:
        """Remove the fold of `stream` and return it. The caller puts it back with `put` after use."""
        _, fold = self._folds.pop(stream) or (0, None)
        return fold

    def put(self, stream: Stream, fold: StreamFold, *, version: int) -> None:
        self._folds.put(stream, (version, fold), weight=fold.weight())


class GrownStream(msgspec.Struct):
    """A stream with new events, and how far it was applied, folded and written.

    `seq`: up to where its lane is read. `before`: the version up to which the build has applied it. `after`: its
    version at `seq`. `kept`: the version that its kept fold has reached. `fold`: its fold during a step, None before
    its first piece where no fold was kept.
    """

    stream: Stream
    seq: int
    before: int
    after: int
    kept: int
    fold: StreamFold | None = None

    @property
    def to_read(self) -> int:
        return self.after - self.kept


class _Piece(NamedTuple):
    """Events of one stream, from version `after` + 1 to `upto`. The build has applied either all of them or none."""

    grown: GrownStream
    after: int
    upto: int


async def grown_streams(
    connection: AsyncConnection, at: Mapping[int, int], upto: Mapping[int, int], kept: KeptFolds
) -> list[GrownStream]:
    """The streams with events after `at`, up to `upto`, by lane. Raises `LogCorrupted` where an event is missing."""
    parameters = {"lanes": list(upto), "after": [at[lane] for lane in upto], "upto": list(upto.values())}
    grown, counts = list[GrownStream](), Counter[int]()
    for lane, stream_id, first, last, count in await (await connection.execute(_GROWN, parameters)).fetchall():
        stream = (lane, stream_id)
        counts[lane] += count
        grown.append(GrownStream(stream, upto[lane], first - 1, last, kept.version(stream, before=first - 1)))
    for lane, target in upto.items():
        if counts[lane] != target - at[lane]:
            what = f"{counts[lane]} events after {at[lane]} where {target - at[lane]} must be"
            raise LogCorrupted(lane, target, what)
    return grown


async def refold(
    connection: AsyncConnection, projection: Inline, grown: Sequence[GrownStream], kept: KeptFolds
) -> None:
    """Bring the rows of `grown` up to date, in the tables that the search path finds.

    All rows that change are deleted before the first new one is inserted. Otherwise a unique value that one instance
    has released and another has taken since would exist twice for a moment. Raises `EventRefused` and `LogCorrupted`.
    """
    table = projection.tables[0]
    names = {
        "table": sql.Identifier(table.name),
        "staged": sql.Identifier(_STAGED),
        "columns": identifiers(table.columns),
        "same_key": sql.SQL(" AND ").join(
            sql.SQL("t.{0} = s.{0}").format(sql.Identifier(column)) for column in table.key
        ),
    }
    await connection.execute(_STAGE.format(**names))
    for one in grown:
        # All of them now: `put` may discard folds that are needed later in this step.
        fold = kept.pop(one.stream)
        one.fold = fold if one.kept else None
    staged = Table(_STAGED, table.key, table.columns, table.stream)
    for pieces in _batches(grown):
        await copy_in_async(connection, staged, await _changes(connection, projection, pieces, kept))
    await connection.execute(_REPLACE.format(**names))


async def _changes(
    connection: AsyncConnection, projection: Inline, pieces: Sequence[_Piece], kept: KeptFolds
) -> list[Row]:
    """Fold `pieces`. Returns the changed rows of the streams that are complete with them."""
    rows, left = list[Row](), list(pieces)
    while left:
        page, left = await _read(connection, left)
        for piece, payloads in page:
            rows += _feed_piece(projection, piece, payloads)
            if piece.upto == piece.grown.after:
                fold, piece.grown.fold = piece.grown.fold, None
                assert fold is not None, "it was fed"
                kept.put(piece.grown.stream, fold, version=piece.upto)
    return rows


async def _read(connection: AsyncConnection, pieces: Sequence[_Piece]) -> tuple[list[tuple[_Piece, str]], list[_Piece]]:
    """Read a page of `pieces`. Returns what was read, as a JSON array per piece, and the pieces that are left to read.

    Raises `LogCorrupted` where an event is missing.
    """
    parameters = {
        "lanes": [piece.grown.stream[0] for piece in pieces],
        "streams": [piece.grown.stream[1] for piece in pieces],
        "after": [piece.after for piece in pieces],
        "upto": [piece.upto for piece in pieces],
        "bytes": pages.PAGE_BYTES,
    }
    query = _PIECES.format(payload=sql_fragments.payload(), weight=pages.weight())
    found = {place: rest for place, *rest in await (await connection.execute(query, parameters)).fetchall()}
    end = max(found, default=0)
    is_full = end > 0 and found[end][2] >= pages.PAGE_BYTES
    page, left = list[tuple[_Piece, str]](), list[_Piece]()
    for place, piece in enumerate(pieces, 1):
        count, last, _, payloads = found.get(place, (0, piece.after, 0, ""))
        is_cut = is_full and place >= end
        if count != last - piece.after or (last != piece.upto and not is_cut):
            (lane, stream_id), due = piece.grown.stream, piece.upto - piece.after
            what = f"{count} events of {stream_id} after its version {piece.after} where {due} must be"
            raise LogCorrupted(lane, piece.grown.seq, what)
        if last > piece.after:
            page.append((piece._replace(upto=last), payloads))
        if last < piece.upto:
            left.append(piece._replace(after=last))
    return page, left


def _feed_piece(projection: Inline, piece: _Piece, payloads: str) -> Iterable[Row]:
    """Feed a piece to the fold of its stream. Returns the changed rows after the last piece. Raises `EventRefused`."""
    grown, (lane, stream_id) = piece.grown, piece.grown.stream
    fold = grown.fold
    try:
        if fold is None:
            fold = grown.fold = projection.begin(stream_id, lane=lane)
        fold.feed(sql_fragments.events_of(payloads))
        if piece.upto == grown.after:
            return fold.rows()
        if piece.upto <= grown.before:
            # The table has the rows of these events already.
            fold.rows()
    except Exception as error:
        raise EventRefused(projection.name, error, lane=lane, stream_id=stream_id) from error
    return ()


def _batches(grown: Iterable[GrownStream]) -> Iterator[list[_Piece]]:
    """All that is to be read of `grown`, stream after stream, in batches of at most `EVENTS_MAX` events."""
    batch, room = list[_Piece](), EVENTS_MAX
    for one in grown:
        at = one.kept
        while at < one.after:
            upto = min(at + room, one.before if at < one.before else one.after)
            batch.append(_Piece(one, at, upto))
            room -= upto - at
            at = upto
            if room == 0:
                yield batch
                batch, room = [], EVENTS_MAX
    if batch:
        yield batch
