"""Compares snapshots with the log: folds the stream of each from its beginning, and compares the result.

The two need not be read in one transaction: a snapshot states its version, and events never change.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from uuid import UUID

import msgspec
from psycopg import Connection

from events import pages
from events.errors import EventUnreadable, LogCorrupted
from events.folding import fold_page, version_of
from events.sql import Statements
from events.state import Instance
from events.stream_state import FOLD_VERSION, decode, encode
from events.verification_findings import Finding, Note
from hydracore.audit.changes import changes_between

_SNAPSHOT = Statements("events", "snapshots.sql")["snapshot"]
_STREAM_FROM = pages.insert_weight(Statements("events", "store.sql")["stream_from"])
_SQL = Statements("hydracore.audit", "snapshots.sql")
_STREAMS = _SQL["streams"]
_NEWER_SNAPSHOTS = _SQL["newer_snapshots"]
_EVENTS_TO_FOLD = _SQL["events_to_fold"]

#: The most events that are folded between two pauses for writers.
PAGE = 200

#: The most differing fields that a finding names.
_FIELDS_MAX = 5

_NEWER_NOT_COMPARED = "Snapshots by a newer HydraCore with different rules were not compared"


def events_to_fold(connection: Connection, after: Mapping[int, int]) -> dict[int, int]:
    """The number of events to fold per lane, for snapshots of streams that have events behind the number `after`."""
    parameters = {"lanes": [*after], "after": [*after.values()], "fold": FOLD_VERSION}
    return dict(connection.execute(_EVENTS_TO_FOLD, parameters).fetchall())


def compare(
    connection: Connection, lane: int, *, among: Container[bytes] | None, after_each: Callable[[int], None]
) -> Iterator[Finding | Note]:
    """What is wrong with the snapshots of a lane, or was not compared.

    `among`: the streams to compare, by the bytes of their ids; None for all. `after_each`: called after
    each page of events, with their number. An event that cannot be read or folded is not reported here,
    but where the rows of its stream are compared.
    """
    ((newer_count,),) = connection.execute(_NEWER_SNAPSHOTS, (lane, FOLD_VERSION)).fetchall()
    if newer_count:
        yield Note(_NEWER_NOT_COMPARED, lane, str(newer_count))
    for (stream_id,) in connection.execute(_STREAMS, (lane, FOLD_VERSION)).fetchall():
        if among is not None and stream_id.bytes not in among:
            continue
        # Another release may have replaced it meanwhile.
        for version, digest, text in connection.execute(_SNAPSHOT, (lane, stream_id, FOLD_VERSION)).fetchall():
            what = _flaw(connection, lane, stream_id, (version, digest, text), after_each)
            if what is not None:
                yield Finding(kind="row_differs", what=what, lane=lane, stream_id=stream_id, table="snapshot")


def _flaw(
    connection: Connection,
    lane: int,
    stream_id: UUID,
    snapshot: tuple[int | None, bytes | None, str | None],
    after_each: Callable[[int], None],
) -> str | None:
    version, digest, text = snapshot
    # Possible only without the table's constraints, which somebody may have dropped.
    if version is None or digest is None or text is None or version < 1:
        return "The snapshot lacks required fields"
    state, last = None, b""
    while version_of(state) < version:
        after = version_of(state)
        parameters = (lane, stream_id, after + 1, min(PAGE, version - after), pages.PAGE_BYTES)
        rows = connection.execute(_STREAM_FROM, parameters).fetchall()
        if not rows:
            return f"The snapshot has version {version}, but the stream ends with {after}"
        try:
            state = fold_page(state, [row[:5] for row in rows], stream_id=stream_id)
        except (EventUnreadable, LogCorrupted):
            return None
        last = rows[-1][5]
        after_each(len(rows))
    assert state is not None, "a version is not below 1"
    if last != digest:
        return f"The snapshot was made from a different event than the log has at version {version}"
    return None if encode(state) == text.encode() else _difference(text, state)


def _difference(text: str, wanted: Instance) -> str:
    try:
        stored = decode(text)
    except (msgspec.DecodeError, RecursionError):
        return "The snapshot cannot be read"
    fields = [change.field for change in changes_between(stored, wanted)]
    if not fields:
        return "The snapshot is not encoded as a replay of the log encodes it"
    return f"The snapshot differs from a replay of the log in {', '.join(fields[:_FIELDS_MAX])}{', ...' if len(fields) > _FIELDS_MAX else ''}"
