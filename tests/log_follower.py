"""Reads the log as followers do, without folding it."""

from __future__ import annotations

from psycopg import AsyncConnection

from events import types as e
from events.exchange import Statement, parse_int
from events.ids import LANES
from events.lease import lease
from projections.fact import Fact, Reader
from projections.fact_pages import read_facts
from projections.follower import BATCH_MAX, LANE_BATCH_MIN

_HEADS = Statement(b"SELECT lane, head FROM lane_head ORDER BY lane", ())

#: Wants all events, and what they say.
EVERYTHING = Reader("everything", 1, None, payloads=True)


class LogFollower:
    """Follows every lane, from its beginning."""

    def __init__(self) -> None:
        self._at = dict.fromkeys(range(LANES), 0)

    async def read_new(self, connection: AsyncConnection) -> list[Fact]:
        """The events since the last call, those of each lane in order: as many as a follower reads at a time, or none.

        A gap, which a follower would raise an alarm for, fails the test. The connection must be in autocommit mode.
        """
        async with lease(connection, _HEADS) as rows:
            heads = {parse_int(lane): parse_int(head) for lane, head in rows}
            places = [(lane, seq) for lane, seq in self._at.items() if heads[lane] > seq]
            if not places:
                return []
            limit = max(LANE_BATCH_MIN, BATCH_MAX // len(places))
            found = await read_facts(connection, places, [EVERYTHING], heads=heads, limit=limit)
        assert not found.gaps, found.gaps
        reached = dict(self._at)
        for (lane, after), entries in found.entries.items():
            reached[lane] = after + len(entries)
            assert [one.seq for one in entries] == list(range(after + 1, reached[lane] + 1))
            assert reached[lane] >= heads[lane] or (lane, after) in found.full, (
                "a head never runs ahead of what can be read"
            )
        self._at = reached
        return EVERYTHING.decode([one for place in places for one in found.entries[place]], found.skipped)


def version_of(fact: Fact) -> int:
    """The version of the event, as it says itself, in a stream that has nothing but a request and then reports of usage, of which each
    bears the next number.
    """
    return 1 if isinstance(fact.event, e.InstanceRequested) else _reported(fact.event) + 1


def _reported(event: e.AnyEvent) -> int:
    assert isinstance(event, e.UsageRecorded), event
    return event.seq
