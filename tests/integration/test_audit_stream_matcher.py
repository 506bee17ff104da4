"""Verified events are folded at once: streams whose rows match are not read again, and all others are."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from pathlib import Path
from types import ModuleType
from uuid import UUID

import psycopg
import pytest

from events import pages
from events.lane_verification import LaneVerification
from events.pacing import Pace
from events.types import AnyEvent
from events.verify import check_lanes
from events.window import Window
from hydracore.audit import inline_tables, verifying
from hydracore.audit.served_projections import find_served_projections
from hydracore.audit.stream_matcher import StreamMatcher
from hydracore.audit.verifying_lanes import Job, verify_lanes
from projections.instance import InstanceFold, InstanceProjection
from tests.sealed_log import LANE, SEALED_AT, Forger, SealedLogs, sealed_log, update_projections
from tests.services import Services
from tests.tampering import CountedProgress, connection, forger, lane_findings, module_database

__all__ = ["connection", "forger"]

#: How many events the lane has, and the streams in it.
EVENTS = SEALED_AT[-1]
LENGTHS = {0: 6, 1: 3, 2: 3}

#: How often the events of a stream were looked for in this transaction.
LOOKED_FOR = "SELECT pg_stat_get_xact_numscans('event_lane_stream_version'::regclass)"

#: The events and commands of one stream once more: in another lane, and behind all others of their own.
IN_LANE_7_TOO = (
    (
        "INSERT INTO event SELECT 7, row_number() OVER (ORDER BY seq), stream_id, version, tenant_id, type, schema_version, payload,"
        " digest, command_id, recorded_at FROM event WHERE stream_id = %(second)s"
    ),
    (
        "INSERT INTO command SELECT (made.row).* FROM (SELECT jsonb_populate_record(c, jsonb_build_object('lane', 7, 'first_seq', e.seq))"
        " AS row FROM command c JOIN event e ON e.lane = 7 AND e.command_id = c.command_id) made"
    ),
)
TWICE = (
    "DROP INDEX event_lane_stream_version",
    (
        "INSERT INTO event SELECT lane, 12 + row_number() OVER (ORDER BY seq), stream_id, version, tenant_id, type, schema_version,"
        " payload, digest, command_id, recorded_at FROM event WHERE stream_id = %(second)s"
    ),
    (
        "INSERT INTO command SELECT (made.row).* FROM (SELECT jsonb_populate_record(c, jsonb_build_object("
        "'command_id', gen_random_uuid(), 'first_seq', e.seq)) AS row"
        " FROM command c JOIN event e ON e.lane = 6 AND e.seq > 12 AND e.command_id = c.command_id) made"
    ),
)

_ids: list[bytes] = []


@pytest.fixture(scope="module")
def url(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    async def make(url: str) -> None:
        async with sealed_log(url, tmp_path_factory.mktemp("seals")) as log:
            _ids[:] = [stream_id.bytes for stream_id in log.ids]
            await update_projections(log)

    with module_database(services, "matching", make) as url:
        yield url


def taken(
    connection: psycopg.Connection, limit: tuple[ModuleType, str] | None = None
) -> tuple[list[int], StreamMatcher]:
    """How many events matched after each window of the lane; `limit`: a constant that is 1 meanwhile."""
    matcher, told = StreamMatcher(connection, [LANE]), list[int]()

    def take(lane: int, window: Window) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if limit is not None:
                patch.setattr(*limit, 1)
            told.append(matcher.take(lane, window))

    check_lanes(connection, [LaneVerification(LANE)], on_read=lambda _: None, on_valid_window=take)
    return told, matcher


def matched(connection: psycopg.Connection) -> set[int]:
    """The numbers of the lane's instances that match, each with all of its events."""
    told, matcher = taken(connection)
    assert sum(told) + matcher.compare() == sum(matcher.matched.values())
    assert all(
        matcher.matched[_ids[number]] == LENGTHS[number] for number in LENGTHS if _ids[number] in matcher.matched
    )
    return {_ids.index(stream) for stream in matcher.matched}


def test_streams_whose_rows_match_are_not_read_again(forger: Forger) -> None:
    """Sequential scans are off: for so few events a plan would read the whole table."""
    forger.connection.execute("SET LOCAL enable_seqscan = off")

    assert lane_findings(forger, replay=True) == []
    assert forger.connection.execute(LOOKED_FOR).fetchone() == (0,)

    forger.connection.execute("UPDATE instance SET tier_id = 'another'")
    assert lane_findings(forger, replay=True)
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
        # A value that no reader can represent, and a duplicated row: no stream of the lane is said to match.
        ("UPDATE instance SET wake_at = 'infinity' WHERE id = %(second)s", set()),
        (
            (
                "ALTER TABLE instance DROP CONSTRAINT instance_pkey CASCADE;"
                "INSERT INTO instance SELECT * FROM instance WHERE idempotency_key = 'number 42'"
            ),
            set(),
        ),
        # Types that the tables do not have.
        ("ALTER TABLE instance ALTER capabilities TYPE jsonb USING capabilities::text::jsonb", set()),
        ("ALTER TABLE provision_log ALTER message TYPE text[] USING ARRAY[message]", set()),
        ("ALTER TABLE stream ALTER version TYPE bigint", {0, 1, 2}),
        (
            (
                "ALTER TABLE stream ALTER version TYPE bigint;"
                "UPDATE stream SET version = 1099511627776 WHERE stream_id = %(second)s"
            ),
            {0, 2},
        ),
        # Where the log itself is wrong, reading it reports so.
        ("UPDATE stream SET version = 2 WHERE stream_id = %(second)s", {0, 2}),
        ("UPDATE stream SET version = 9 WHERE stream_id = %(second)s", {0, 2}),
        ("UPDATE event SET payload = '{}' WHERE stream_id = %(second)s AND version = 2", set()),
    ],
)
def test_streams_with_a_wrong_row_or_history_do_not_match(forger: Forger, statement: str, matching: set[int]) -> None:
    connection = forger.connection
    connection.execute(statement.replace("%(second)s", f"'{UUID(bytes=_ids[1])}'").encode())

    assert matched(connection) == matching


@pytest.mark.parametrize("enough", ["so many", "so large"])
def test_streams_are_compared_as_soon_as_there_are_enough(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, enough: str
) -> None:
    """Otherwise as many as may be compared together would be held, however large each of their events is."""
    monkeypatch.setattr("events.lane_verification.WINDOW_EVENTS", 1)
    limit = (inline_tables, "EVENTS_MAX") if enough == "so many" else (pages, "PAGE_BYTES")

    told, matcher = taken(connection, limit)

    assert [events for events in told if events] == list(LENGTHS.values())
    assert matcher.compare() == 0


def test_a_stream_that_matches_in_its_own_lane_is_still_compared_in_another(forger: Forger) -> None:
    """There it has no rows, and as many events."""
    forger.do(*(statement.replace("%(second)s", f"'{UUID(bytes=_ids[1])}'") for statement in IN_LANE_7_TOO))
    jobs, pace = [Job(lane=lane) for lane in (LANE, 7)], Pace(full_speed=True)

    reports = verify_lanes(forger.connection, jobs, pace, lambda _: None)

    found = {(found.kind, found.table) for found in reports[1].findings}
    assert {("row_missing", "instance"), ("row_missing", "provision_log")} <= found
    assert reports[0].findings == []


def test_a_stream_copied_into_another_lane_is_still_compared_in_its_own(forger: Forger) -> None:
    """Otherwise an edited row of it would pass until the copy is removed."""
    edit = "UPDATE instance SET agent_name = 'forged' WHERE id = %(second)s"
    forger.do(*(statement.replace("%(second)s", f"'{UUID(bytes=_ids[1])}'") for statement in (edit, *IN_LANE_7_TOO)))
    jobs, pace = [Job(lane=lane) for lane in (LANE, 7)], Pace(full_speed=True)

    reports = verify_lanes(forger.connection, jobs, pace, lambda _: None)

    assert [(found.kind, found.table) for found in reports[0].findings] == [("row_differs", "instance")]
    assert ("row_missing", "instance") in {(found.kind, found.table) for found in reports[1].findings}


def test_a_copy_in_another_lane_does_not_hide_a_rewritten_stream(forger: Forger) -> None:
    """The rows are what the copy gives, and not what the stream does where it belongs."""
    forger.do(*(statement.replace("%(second)s", f"'{UUID(bytes=_ids[1])}'") for statement in IN_LANE_7_TOO))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.sealed_log.LANE", 7)
        forger.redo_links()
    forger.do("UPDATE event SET payload = replace(payload::text, 'second', 'forged')::json WHERE lane = 6 AND seq = 11")
    forger.redo_event(11)
    forger.redo_command(11)
    forger.redo_links()
    jobs, pace = [Job(lane=lane) for lane in (7, LANE)], Pace(full_speed=True)

    reports = verify_lanes(forger.connection, jobs, pace, lambda _: None)

    assert [(found.kind, found.table) for found in reports[1].findings] == [("row_differs", "instance")]


def test_a_stream_with_duplicated_events_is_found_as_a_broken_history(
    forger: Forger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that is there twice matches as far as its window goes, and its history makes no sense."""
    monkeypatch.setattr("events.lane_verification.WINDOW_EVENTS", EVENTS)
    forger.do(*(statement.replace("%(second)s", f"'{UUID(bytes=_ids[1])}'") for statement in TWICE))

    found = {(found.kind, found.stream_id) for found in lane_findings(forger, replay=True, sealed=False)}

    assert ("history_broken", UUID(bytes=_ids[1])) in found


def test_a_stream_that_cannot_be_folded_does_not_match(forger: Forger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it if it has no rows either."""

    class Picky(InstanceFold):
        def feed(self, events: Sequence[AnyEvent]) -> None:
            if self._id.bytes == _ids[1]:
                raise ValueError(len(events))
            super().feed(events)

    monkeypatch.setattr(InstanceProjection, "begin", lambda _, stream_id, *, lane: Picky(stream_id, lane=lane))

    assert matched(forger.connection) == {0, 2}
    forger.do("DELETE FROM instance", "DELETE FROM provision_log", "DELETE FROM reservation")
    assert matched(forger.connection) == set()


def test_a_lack_of_memory_is_an_error_and_no_finding(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hungry(InstanceFold):
        def feed(self, events: Sequence[AnyEvent]) -> None:
            raise MemoryError(len(events))

    monkeypatch.setattr(InstanceProjection, "begin", lambda _, stream_id, *, lane: Hungry(stream_id, lane=lane))

    with pytest.raises(MemoryError):
        matched(connection)
    with pytest.raises(MemoryError), connection.transaction():
        list(
            inline_tables.compare(
                connection, inline_tables.StreamBatch({_ids[0]: LANE}, 6), find_served_projections(connection).inline
            )
        )


def test_a_broken_session_raises_its_first_error_and_not_that_of_leaving_the_pipeline(
    url: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(InstanceFold):
        """Has the session ended in the middle, as a restart of the database does."""

        def feed(self, events: Sequence[AnyEvent]) -> None:
            with psycopg.connect(url, autocommit=True) as other:
                # Waits until the session is gone.
                other.execute("SELECT pg_terminate_backend(%s, 30000)", (connection.info.backend_pid,))
            super().feed(events)

    monkeypatch.setattr(InstanceProjection, "begin", lambda _, stream_id, *, lane: Ending(stream_id, lane=lane))

    # An error of before, which is handled meanwhile, is not of this session.
    with (
        psycopg.connect(url) as other,
        pytest.raises(psycopg.OperationalError, match=r"terminating connection|consuming input failed"),
    ):
        try:
            other.execute("SELECT 1 / 0")
        except psycopg.DataError:
            matched(connection)


async def test_a_stream_that_has_grown_after_it_matched_is_compared_again(
    sealed_logs: SealedLogs, tmp_path: Path
) -> None:
    """It gets another event after it matched, and then its row is edited."""
    loop = asyncio.get_running_loop()

    async with sealed_logs.copy(tmp_path) as log:
        await update_projections(log)

        class Meanwhile(CountedProgress):
            def advance(self, done: int) -> None:
                if self.done < 2 * EVENTS <= self.done + done:
                    asyncio.run_coroutine_threadsafe(log.rename(0, "third"), loop).result()
                    with psycopg.connect(log.url) as connection:
                        connection.execute("UPDATE instance SET tier_id = 'another' WHERE id = %s", (log.ids[0],))
                super().advance(done)

        counted = Meanwhile()
        request = verifying.Request(conninfo=log.url, lanes=(LANE,))
        report = await asyncio.to_thread(verifying.verify, request, counted)

        assert [(found.kind, found.stream_id) for found in report.findings] == [("row_differs", log.ids[0])]
        assert (report.events, counted.total, counted.done) == (EVENTS + 1, 2 * EVENTS, 2 * EVENTS)
