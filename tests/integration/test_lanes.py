"""Sixteen writers with rollbacks, and readers meanwhile: a lane never has a gap, a repeat or a wrong order."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from uuid import UUID, uuid4

from psycopg import AsyncConnection

from events import batch
from events.batch import AppendResult
from events.decide import decide
from events.evolve import evolve
from events.exchange import Statement, exchange
from events.ids import lane_of
from events.record import Append, Origin
from events.state import Instance
from hydracore.db.pool import conninfo
from tests import lifecycle
from tests.lifecycle import instance_id
from tests.log_check import check_log
from tests.log_follower import LogFollower, version_of

WRITERS = 16
ROUNDS = 25
ROLLBACKS = 0.3

#: Few lanes for many writers, so that they really meet.
LANES_USED = 4

#: Of waiting for a lock, and of a transaction: tests here hold lanes for as long as they need.
NO_LIMITS = (b"0", b"0")


def streams() -> list[UUID]:
    """Instances of `LANES_USED` lanes, four for each writer."""
    ids = (instance_id(f"c{number}") for number in range(10_000))
    found = [each for each in ids if lane_of(each) < LANES_USED]
    return found[: 4 * WRITERS]


class Writer:
    """One connection, one transaction after the other; each appends to some streams of its own and may be rolled back."""

    def __init__(self, url: str, streams: list[UUID], seed: int) -> None:
        self._url = url
        self._states: dict[UUID, Instance | None] = dict.fromkeys(streams)
        self._random = random.Random(seed)  # noqa: S311 - a test that can be repeated
        self.committed: set[UUID] = set()
        self.rolled_back: set[UUID] = set()

    async def write(self) -> None:
        # Without psycopg's own preparing, which drops everyone's prepared statements after a rollback.
        async with await AsyncConnection.connect(self._url, prepare_threshold=None) as connection:
            for _ in range(ROUNDS):
                streams = self._random.sample(sorted(self._states), self._random.randint(1, len(self._states)))
                appends = [self._next(stream_id) for stream_id in streams]
                ids = {append.origin.command_id for append in appends}
                await self._append(connection, appends)
                # The transaction stays open for as long as this answer takes: others queue up behind its lanes.
                await connection.execute("SELECT count(*) FROM event")
                if self._random.random() < ROLLBACKS:
                    await connection.rollback()
                    self.rolled_back |= ids
                else:
                    await connection.commit()
                    self.committed |= ids
                    self._states |= {append.stream_id: append.after for append in appends}

    def _next(self, stream_id: UUID) -> Append:
        before = self._states[stream_id]
        command = lifecycle.request() if before is None else lifecycle.usage(before.version)
        events = decide(before, command, stream_id=stream_id)
        after = before
        for event in events:
            after = evolve(after, event, stream_id=stream_id)
        assert after is not None
        return Append(
            stream_id=stream_id,
            lane=lane_of(stream_id),
            name=type(command).__name__,
            before=before,
            after=after,
            events=events,
            origin=Origin(actor="worker", command_id=uuid4(), correlation_id=stream_id),
        )

    @staticmethod
    async def _append(connection: AsyncConnection, appends: list[Append]) -> None:
        parameters, digests = batch._parameters(appends)
        await connection.execute("SELECT 1")  # Begins the transaction.
        [answers] = await exchange(connection, [Statement(batch._APPEND, (*parameters, *NO_LIMITS))])
        results: list[AppendResult] = [batch._append_result(*each) for each in zip(answers, digests, strict=True)]
        assert {result.outcome for result in results} == {"appended"}


class Reader:
    """Follows every lane as followers do, which check for gaps, and keeps what it has seen."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.seen: dict[int, list[tuple[int, UUID, int]]] = defaultdict(list)
        self.rounds_with_news = 0

    async def follow(self, stop: asyncio.Event) -> None:
        async with await AsyncConnection.connect(self._url, autocommit=True) as connection:
            following, last = LogFollower(), False
            while not last:
                last = stop.is_set()  # One more round after the last commit.
                while facts := await following.read_new(connection):
                    self.rounds_with_news += 1
                    for fact in facts:
                        self.seen[fact.lane].append((fact.seq, fact.stream_id, version_of(fact)))


async def test_lanes_stay_dense_and_ordered_under_sixteen_writers_with_rollbacks(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    url = conninfo(database_url, role="hydracore_app", application="test")
    ids = streams()
    writers = [Writer(url, ids[number::WRITERS], seed=number) for number in range(WRITERS)]
    readers = [Reader(url), Reader(url)]
    stop = asyncio.Event()

    following = asyncio.gather(*(reader.follow(stop) for reader in readers))
    await asyncio.gather(*(writer.write() for writer in writers))
    stop.set()
    await following

    log = await check_log(owner_conn)
    assert log.commands.keys() == set().union(*(writer.committed for writer in writers))
    rolled_back = set().union(*(writer.rolled_back for writer in writers))
    assert len(rolled_back) > len(log.commands) / 5
    for reader in readers:
        assert reader.rounds_with_news > 10, "the reader watched while it happened"
        for lane in range(LANES_USED):
            stored = [(row["seq"], row["stream_id"], row["version"]) for row in log.events if row["lane"] == lane]
            assert reader.seen[lane] == stored


async def test_a_transaction_that_is_rolled_back_gives_its_numbers_to_the_next(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    url = conninfo(database_url, role="hydracore_app", application="test")
    stream_id = streams()[0]
    async with await AsyncConnection.connect(url, prepare_threshold=None) as connection:
        for end in (connection.rollback, connection.rollback, connection.commit):
            await Writer._append(connection, [Writer(url, [stream_id], seed=0)._next(stream_id)])
            await end()

    log = await check_log(owner_conn)
    assert [event["seq"] for event in log.events] == [1]


async def test_an_append_waits_for_an_open_append_to_its_lane_but_not_to_other_lanes(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    url = conninfo(database_url, role="hydracore_app", application="test")
    ids = streams()
    same_lane = [each for each in ids if lane_of(each) == 0][:2]
    other_lane = next(each for each in ids if lane_of(each) == 1)
    async with (
        await AsyncConnection.connect(url) as first,
        await AsyncConnection.connect(url) as second,
        await AsyncConnection.connect(url, autocommit=True) as third,
    ):
        await Writer._append(first, [Writer(url, [same_lane[0]], seed=0)._next(same_lane[0])])

        waiting = asyncio.create_task(Writer._append(second, [Writer(url, [same_lane[1]], seed=0)._next(same_lane[1])]))
        await Writer._append(third, [Writer(url, [other_lane], seed=0)._next(other_lane)])
        assert not waiting.done()
        await first.commit()
        await waiting
        await second.commit()

    log = await check_log(owner_conn)
    assert [event["stream_id"] for event in log.events if event["lane"] == 0] == same_lane
