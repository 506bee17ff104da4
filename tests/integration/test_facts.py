"""What followers read of a lane: every event in order, from any position on, and never past a gap."""

from __future__ import annotations

import pytest
from psycopg import AsyncConnection

from events.ids import lane_of
from projections.fact import LogEntry
from projections.fact_pages import read_facts
from tests import lifecycle
from tests.lifecycle import instance_id
from tests.log_follower import EVERYTHING, LogFollower
from tests.store_commands import open_store, origin

ADA = instance_id("ada")
LANE = lane_of(ADA)
EVENTS = lifecycle.InMemoryInstance.after(*lifecycle.RUNNING).events
HEAD = len(EVENTS)


@pytest.fixture(autouse=True)
async def running(database_url: str) -> None:
    """A lane with Ada's instance in it, and nothing else."""
    async with open_store(database_url) as (store, _):
        for command in lifecycle.RUNNING:
            await store.execute(ADA, command, origin())


async def read(connection: AsyncConnection, *, after: int, limit: int) -> tuple[list[LogEntry], bool]:
    """The entries after that number, and whether there may be more."""
    place = (LANE, after)
    found = await read_facts(connection, [place], [EVERYTHING], heads={LANE: HEAD}, limit=limit)
    assert not found.gaps
    return found.entries[place], place in found.full


async def test_a_lane_is_read_in_order_as_a_whole_and_in_pieces(owner_conn: AsyncConnection) -> None:
    everything, more = await read(owner_conn, after=0, limit=1_000)
    piece, more_than_piece = await read(owner_conn, after=2, limit=3)
    rest, more_than_rest = await read(owner_conn, after=5, limit=1_000)

    assert [entry.seq for entry in everything] == list(range(1, HEAD + 1))
    assert [fact.event for fact in EVERYTHING.decode(everything, frozenset())] == list(EVENTS)
    assert (piece, rest) == (everything[2:5], everything[5:])
    assert (more, more_than_piece, more_than_rest) == (False, True, False)


async def test_a_page_that_reaches_its_byte_limit_ends_after_that_event_and_reports_no_gap(
    owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.pages.PAGE_BYTES", 1)

    piece, more = await read(owner_conn, after=2, limit=1_000)

    assert ([entry.seq for entry in piece], more) == ([3], True)


async def test_several_reading_positions_share_the_byte_limit_of_a_page(
    owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighed = await (await owner_conn.execute("SELECT sum(pg_column_size(payload)) FROM event")).fetchone()
    assert weighed is not None
    monkeypatch.setattr("events.pages.PAGE_BYTES", int(weighed[0]) + 1)

    alone, _ = await read(owner_conn, after=0, limit=1_000)
    places = [(LANE, after) for after in range(HEAD)]
    found = await read_facts(owner_conn, places, [EVERYTHING], heads={LANE: HEAD}, limit=1_000)

    assert len(alone) == HEAD
    assert len(found.entries[LANE, 0]) == 1
    assert not found.gaps


async def test_no_event_after_a_gap_is_returned(owner_conn: AsyncConnection) -> None:
    await owner_conn.execute("DELETE FROM event WHERE seq = 3")

    places = [(LANE, 0), (LANE, 2), (LANE, 3)]
    found = await read_facts(owner_conn, places, [EVERYTHING], heads={LANE: HEAD}, limit=1_000)

    assert {place: [one.seq for one in entries] for place, entries in found.entries.items()} == {
        (LANE, 0): [1, 2],
        (LANE, 2): [],
        (LANE, 3): list(range(4, HEAD + 1)),
    }
    assert {place: str(gap) for place, gap in found.gaps.items()} == dict.fromkeys(
        places[:2], f"Lane {LANE} at 3: the next event is 4"
    )


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM event WHERE seq = 3",
        "DELETE FROM event WHERE seq = (SELECT max(seq) FROM event)",
        "DELETE FROM command WHERE first_seq = 1",
        "UPDATE command SET event_count = event_count + 1 WHERE first_seq = (SELECT max(first_seq) FROM command)",
    ],
)
async def test_the_test_reader_that_checks_for_gaps_fails_at_a_missing_event_or_command(
    owner_conn: AsyncConnection, damage: str
) -> None:
    await owner_conn.execute(damage.encode())

    with pytest.raises(AssertionError, match=f"Lane {LANE} at "):
        await LogFollower().read_new(owner_conn)
