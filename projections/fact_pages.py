"""Reads facts from the log in pages, for any number of readers at once, and finds gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from psycopg import AsyncConnection, sql

from events import pages
from events.errors import LogCorrupted
from events.exchange import Rows, Statement, array_literal, exchange, parse_int
from events.sql import Statements, template
from projections import sql_fragments
from projections.fact import LogEntry, Place, Reader, Skipped, payload_types

_SQL = Statements("projections", "facts.sql")
_FACT_PAGE = template(_SQL["fact_page"])
_SKIPPED = _SQL["skipped"]


class FactPage(NamedTuple):
    """What `read_facts` has found, by place.

    - `entries`: what follows each place, without a gap.
    - `gaps`: the places where the event after those entries is missing, or where the lane ends before its head.
    - `full`: the places after whose entries more may follow, because the page was full.
    - `skipped`: all events that were skipped by hand for these readers, anywhere in the log.
    """

    entries: dict[Place, list[LogEntry]]
    gaps: dict[Place, LogCorrupted]
    full: set[Place]
    skipped: Skipped


async def read_facts(
    connection: AsyncConnection,
    places: Sequence[Place],
    readers: Sequence[Reader],
    *,
    heads: Mapping[int, int],
    limit: int,
    upto: Mapping[int, int] | None = None,
    prepared: bool = True,
) -> FactPage:
    """Read what follows each of `places`, in order, for all `readers`.

    Returns at most `limit` entries per place, and none above `upto` in its lane. The places share the bytes of a
    page.

    `heads`: the lanes' heads as they were before this call. Every event up to there must be in the log, and its command
    too; one that is not is a gap. `prepared`: see `exchange`.
    """
    bytes_max = max(1, pages.PAGE_BYTES // len(places))
    page = _page(places, readers, limit=limit, bytes_max=bytes_max, upto=upto)
    skipped, rows = await exchange(connection, [_skipped(readers), page], prepared=prepared)
    found = FactPage({place: [] for place in places}, {}, set(), _skipped_events(skipped))
    for ordinal, event_seq, name, weight, json in rows:
        lane, after = place = places[parse_int(ordinal) - 1]
        seq, entries = parse_int(event_seq), found.entries[place]
        if parse_int(weight) >= bytes_max:
            found.full.add(place)
        if seq == after + len(entries) + 1:
            assert name is not None
            entries.append(LogEntry(lane, seq, name.decode(), json))
        else:
            missing = after + len(entries) + 1
            found.gaps.setdefault(place, LogCorrupted(lane, missing, f"the next event is {seq}"))
    for (lane, after), entries in found.entries.items():
        if len(entries) >= limit:
            found.full.add((lane, after))
        elif (lane, after) not in found.full and len(entries) < heads[lane] - after:
            what = f"there is no such event, or not its command, and the head is {heads[lane]}"
            found.gaps.setdefault((lane, after), LogCorrupted(lane, after + len(entries) + 1, what))
    return found


def _page(
    places: Sequence[Place],
    readers: Sequence[Reader],
    *,
    limit: int,
    bytes_max: int,
    upto: Mapping[int, int] | None,
) -> Statement:
    types = {name for reader in readers for name in reader.types or ()}
    with_payload = payload_types(readers)
    parameters = (
        None if any(reader.types is None for reader in readers) else array_literal(sorted(types)),
        None if with_payload is None else array_literal(with_payload),
        array_literal(str(lane) for lane, _ in places),
        array_literal(str(after) for _, after in places),
        array_literal("null" if upto is None else str(upto[lane]) for lane, _ in places),
        b"%d" % limit,
        b"%d" % bytes_max,
    )
    return Statement(page_statement(), parameters)


@cache
def page_statement() -> bytes:
    """The statement that reads a page, for the event types of this release. Cached, because every read uses it."""
    with_payload = sql.SQL("$2")
    return _FACT_PAGE.format(
        fact=sql_fragments.fact(with_payload), weight=sql_fragments.weight(with_payload)
    ).as_bytes()


def _skipped(readers: Sequence[Reader]) -> Statement:
    names, versions = (reader.name for reader in readers), (str(reader.version) for reader in readers)
    return Statement(_SKIPPED, (array_literal(names), array_literal(versions)))


def _skipped_events(rows: Rows) -> Skipped:
    return frozenset((name.decode(), parse_int(lane), parse_int(seq)) for name, lane, seq in rows if name is not None)
