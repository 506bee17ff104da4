"""What is verified is folded at once: streams whose rows are as they must be are not read again, and all others are."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from events.types import AnyEvent
from events.verified_lane import Lane
from events.verify import read
from hydracore.audit import tables, verifying
from hydracore.audit.matching import Matching
from hydracore.audit.served import served
from projections.instance import InstanceFold, InstanceProjection
from tests.audit_log import LANE, SEALED_AT, Forger, SealedLogs, follow, sealed_log
from tests.services import Services
from tests.tampering import CountedProgress, find, forger, made_once

__all__ = ["forger"]

#: How many events the lane has, and the streams in it.
EVENTS = SEALED_AT[-1]
LENGTHS = {0: 6, 1: 3, 2: 3}

#: How often the events of a stream were looked for in this transaction.
LOOKED_FOR = "SELECT pg_stat_get_xact_numscans('event_lane_stream_version'::regclass)"

_ids: list[bytes] = []


@pytest.fixture(scope="module")
def url(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    async def make(url: str) -> None:
        async with sealed_log(url, tmp_path_factory.mktemp("seals")) as log:
            _ids[:] = [stream_id.bytes for stream_id in log.ids]
            await follow(log)

    with made_once(services, "matching", make) as url:
        yield url


@pytest.fixture
def connection(url: str) -> Generator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as connected:
        yield connected


def matched(connection: psycopg.Connection) -> set[int]:
    """Which of the lane's instances match, each with all of its events."""
    matching, told = Matching(connection, [LANE]), list[int]()
    read(
        connection,
        [Lane(LANE)],
        after_each=lambda _: None,
        take_fitting=lambda lane, window: told.append(matching.take(lane, window)),
    )
    assert sum(told) + matching.compare() == sum(matching.found.values())
    assert all(matching.found[_ids[number]] == LENGTHS[number] for number in LENGTHS if _ids[number] in matching.found)
    return {_ids.index(stream) for stream in matching.found}


def test_what_was_verified_is_not_read_again_for_its_rows(forger: Forger) -> None:
    """Of so few events a plan would read the whole table."""
    forger.connection.execute("SET LOCAL enable_seqscan = off")

    assert find(forger, replay=True) == []
    assert forger.connection.execute(LOOKED_FOR).fetchone() == (0,)

    forger.connection.execute("UPDATE instance SET tier_id = 'another'")
    assert find(forger, replay=True)
    assert forger.connection.execute(LOOKED_FOR).fetchone() != (0,)


@pytest.mark.parametrize(
    ("statement", "matching"),
    [
        ("SELECT", {0, 1, 2}),
        ("UPDATE instance SET tier_id = 'another' WHERE id = %(second)s", {0, 2}),
        ("DELETE FROM instance WHERE id = %(second)s", {0, 2}),
        ("DELETE FROM provision_log WHERE instance_id = %(second)s AND seq = 2", {0, 2}),
        ("UPDATE provision_log SET seq = 99 WHERE instance_id = %(second)s AND seq = 2", {0, 2}),
        ("UPDATE reservation SET released_at = now() WHERE instance_id = %(second)s", {0, 2}),
        ("DELETE FROM reservation WHERE instance_id = %(second)s", {0, 2}),
        # A value that no reader has a form for, and a row that is there twice: nothing is said of any.
        ("UPDATE instance SET wake_at = 'infinity' WHERE id = %(second)s", set()),
        (
            (
                "ALTER TABLE instance DROP CONSTRAINT instance_pkey CASCADE;"
                "INSERT INTO instance SELECT * FROM instance WHERE idempotency_key = 'number 42'"
            ),
            set(),
        ),
        # Where the log is wrong, whoever reads it says so.
        ("UPDATE stream SET version = 2 WHERE stream_id = %(second)s", {0, 2}),
        ("UPDATE stream SET version = 9 WHERE stream_id = %(second)s", {0, 2}),
        ("UPDATE event SET payload = '{}' WHERE stream_id = %(second)s AND version = 2", set()),
    ],
)
def test_what_does_not_agree_does_not_match(forger: Forger, statement: str, matching: set[int]) -> None:
    connection = forger.connection
    connection.execute(statement.replace("%(second)s", f"'{UUID(bytes=_ids[1])}'").encode())

    assert matched(connection) == matching


def test_they_are_compared_as_soon_as_there_are_enough(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.verified_lane.WINDOW", 1)
    monkeypatch.setattr(tables, "EVENTS_MAX", 1)

    assert matched(connection) == {0, 1, 2}


def test_what_cannot_be_folded_does_not_match(forger: Forger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it where there is no row of it either."""

    class Picky(InstanceFold):
        def feed(self, events: Sequence[AnyEvent]) -> None:
            if self._id.bytes == _ids[1]:
                raise ValueError(len(events))
            super().feed(events)

    monkeypatch.setattr(InstanceProjection, "begin", lambda _, stream_id, *, lane: Picky(stream_id, lane=lane))

    assert matched(forger.connection) == {0, 2}
    forger.do("DELETE FROM instance", "DELETE FROM provision_log", "DELETE FROM reservation")
    assert matched(forger.connection) == set()


def test_a_lack_of_memory_is_no_finding(connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hungry(InstanceFold):
        def feed(self, events: Sequence[AnyEvent]) -> None:
            raise MemoryError(len(events))

    monkeypatch.setattr(InstanceProjection, "begin", lambda _, stream_id, *, lane: Hungry(stream_id, lane=lane))

    with pytest.raises(MemoryError):
        matched(connection)
    with pytest.raises(MemoryError), connection.transaction():
        list(tables.compare(connection, tables.Part({_ids[0]: LANE}, 6), served(connection).inline))


async def test_one_that_has_moved_since_is_looked_at_again(sealed_logs: SealedLogs, tmp_path: Path) -> None:
    """It got another event after it was seen to match, and then its row was edited."""
    loop = asyncio.get_running_loop()

    async with sealed_logs.copy(tmp_path) as log:
        await follow(log)

        class Meanwhile(CountedProgress):
            def advance(self, done: int) -> None:
                if self.done < 2 * EVENTS <= self.done + done:
                    asyncio.run_coroutine_threadsafe(log.name(0, "third"), loop).result()
                    with psycopg.connect(log.url) as connection:
                        connection.execute("UPDATE instance SET tier_id = 'another' WHERE id = %s", (log.ids[0],))
                super().advance(done)

        counted = Meanwhile()
        request = verifying.Request(conninfo=log.url, lanes=(LANE,))
        report = await asyncio.to_thread(verifying.verify, request, counted)

        assert [(found.kind, found.stream_id) for found in report.findings] == [("row_differs", log.ids[0])]
        assert (report.events, counted.total, counted.done) == (EVENTS + 1, 2 * EVENTS, 2 * EVENTS)
