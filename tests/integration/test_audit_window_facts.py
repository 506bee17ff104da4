"""Verified windows of a lane are folded at once: they give the facts that followers read, so nothing is read twice."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import psycopg
import pytest
from msgspec.structs import asdict

from events import commands as c
from events.lane_verification import LaneVerification
from events.verification_findings import note_sentences
from events.verify import check_lanes
from events.window import Window
from hydracore.audit import followed_tables, verifying
from hydracore.audit.served_projections import find_served_projections
from hydracore.audit.verifying_lanes import Job
from hydracore.audit.window_facts import WindowFacts
from projections.activity import Activity, ActivityFold
from projections.fact import Fact, Reader
from projections.fact_pages import read_facts
from projections.fleet import Fleet
from projections.usage_daily import UsageDaily
from tests import lifecycle
from tests.sealed_log import LANE, SEALED_AT, Forger, sealed_log, update_projections
from tests.services import Services
from tests.store_commands import NOW_MS, origin
from tests.tampering import CountedProgress, connection, forger, lane_report, module_database

__all__ = ["connection", "forger"]

#: The events in the lane of `sealed_log`, and the two that are added here.
EVENTS = SEALED_AT[-1] + 2


@pytest.fixture(scope="module")
def url(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    async def make(url: str) -> None:
        async with sealed_log(url, tmp_path_factory.mktemp("seals")) as log:
            await log.store.execute(log.ids[0], lifecycle.usage(1), origin("agent"))
            deletion = c.RequestDeletion(at_ms=NOW_MS, reason="enough of it")
            await log.store.execute(log.ids[1], deletion, origin("customer:ada"))
            await update_projections(log)

    with module_database(services, "window_facts", make) as url:
        yield url


def windows(connection: psycopg.Connection) -> list[Window]:
    found: list[Window] = []
    check_lanes(
        connection,
        [LaneVerification(LANE)],
        on_read=lambda _: None,
        on_valid_window=lambda _, window: found.append(window),
    )
    return found


def folded(
    connection: psycopg.Connection, *, budget: followed_tables.MemoryBudget | None = None, leave_out: int | None = None
) -> followed_tables.LaneFolds:
    """The folds of the lane's windows, but for the one to leave out."""
    folds = followed_tables.LaneFolds(
        LANE, find_served_projections(connection).followed, budget or followed_tables.MemoryBudget()
    )
    for number, window in enumerate(windows(connection)):
        if number != leave_out:
            folds.take(window)
    return folds


def events_read(connection: psycopg.Connection, folds: followed_tables.LaneFolds) -> int:
    """How many events are read to compare the lane's tables with these folds. They have to agree."""
    read_again: list[int] = []
    followed = find_served_projections(connection).followed
    assert (
        list(followed_tables.compare(connection, LANE, followed, due=0, after_each=read_again.append, lane_folds=folds))
        == []
    )
    return sum(read_again)


@pytest.mark.parametrize("payload_types", [None, ()], ids=["with payloads", "without payloads"])
async def test_windows_give_the_facts_that_followers_read(
    url: str, connection: psycopg.Connection, payload_types: tuple[str, ...] | None
) -> None:
    reader = Reader("reader", 1, None, payloads=payload_types is None)

    of_windows = [each for window in windows(connection) for each in WindowFacts(LANE, payload_types).of(window)]

    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as asking:
        found = await read_facts(asking, [(LANE, 0)], [reader], heads={LANE: EVENTS}, limit=100)
    followed = reader.decode(found.entries[(LANE, 0)], found.skipped)
    assert [asdict(fact) for _, fact in of_windows] == [asdict(fact) for fact in followed]
    assert [name for name, _ in of_windows] == [fact.type for fact in followed]
    assert len(of_windows) == EVENTS


def test_comparing_followed_tables_does_not_read_verified_events_again(connection: psycopg.Connection) -> None:
    assert events_read(connection, folded(connection)) == 0


def test_comparing_reads_only_events_after_the_verified_windows(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.lane_verification.WINDOW_EVENTS", 4)
    folds = followed_tables.LaneFolds(
        LANE, find_served_projections(connection).followed, followed_tables.MemoryBudget()
    )
    folds.take(windows(connection)[0])

    assert 0 < folds.upto < EVENTS
    assert events_read(connection, folds) == EVENTS - folds.upto


def test_a_follower_behind_the_others_is_compared_by_reading_the_log(url: str) -> None:
    with psycopg.connect(url) as connection:
        folds = folded(connection)
        connection.execute("DELETE FROM activity WHERE lane = 6")
        connection.execute("UPDATE checkpoint SET seq = 0 WHERE follower = 'activity' AND lane = 6")

        assert events_read(connection, folds) == EVENTS
        connection.rollback()


def test_a_projection_whose_served_version_has_changed_since_is_folded_anew(connection: psycopg.Connection) -> None:
    class Later(Activity):
        version = 2

    folds = followed_tables.LaneFolds(LANE, [Later(), Fleet(), UsageDaily()], followed_tables.MemoryBudget())
    for window in windows(connection):
        folds.take(window)

    assert events_read(connection, folds) == EVENTS


def test_after_a_missing_window_all_events_are_read_again(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.lane_verification.WINDOW_EVENTS", 4)

    assert events_read(connection, folded(connection, leave_out=1)) == EVENTS


def test_folds_that_exceed_the_memory_budget_are_dropped_and_the_events_read_again(
    connection: psycopg.Connection,
) -> None:
    budget = followed_tables.MemoryBudget(1)

    assert events_read(connection, folded(connection, budget=budget)) == EVENTS
    assert budget.bytes_left == 1


def test_dropped_folds_give_their_memory_back_to_the_budget(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.lane_verification.WINDOW_EVENTS", 4)
    budget = followed_tables.MemoryBudget()

    folded(connection, budget=budget, leave_out=1)

    assert budget.bytes_left == followed_tables.HELD_BYTES_MAX


def test_windows_that_are_too_large_to_keep_are_read_again(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.pages.PAGE_BYTES", 100)

    folds = folded(connection)

    assert folds.upto < EVENTS
    assert events_read(connection, folds) == EVENTS - folds.upto


def test_rows_of_a_version_that_is_not_served_are_not_compared(connection: psycopg.Connection) -> None:
    class Later(Activity):
        version = 2

        def begin(self) -> ActivityFold:
            raise AssertionError("this version is not served")

    assert list(followed_tables.compare(connection, LANE, [Later()], due=EVENTS, after_each=lambda _: None)) == []


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "UPDATE event SET schema_version = 2 WHERE lane = 6 AND seq = 4",
            "Version 2 of event placement_chosen was written by a newer HydraCore",
        ),
        (
            """UPDATE event SET payload = '{"type":"placement_chosen","at_ms":1}' WHERE lane = 6 AND seq = 4""",
            "The events of the lane cannot be applied to fleet: ValidationError",
        ),
    ],
    ids=["newer", "malformed"],
)
def test_a_correctly_chained_event_that_cannot_be_folded_is_reported_once(
    forger: Forger, statement: str, expected: str
) -> None:
    forger.do(statement)
    forger.redo_event(4)
    forger.redo_command(4)
    forger.redo_links()

    # With `replay` it also compares the read tables.
    report = lane_report(forger, replay=True, sealed=False)

    sentences = [*(finding.what for finding in report.findings), *note_sentences(report.notes)]
    assert len([what for what in sentences if expected in what]) == 1


def test_lanes_verified_at_once_share_one_limit_of_folded_events() -> None:
    jobs = [Job(lane=lane, upto=upto) for lane, upto in enumerate((1_200_000, 1_200_000, 800_000, 1))]

    assert [job.fold_while_verifying for job in verifying._enable_folding(jobs)] == [True, False, True, False]


def test_a_lack_of_memory_is_raised_and_not_reported_as_a_finding(connection: psycopg.Connection) -> None:
    class Hungry(ActivityFold):
        def feed(self, facts: Sequence[Fact]) -> None:
            raise MemoryError(len(facts))

    class Large(Activity):
        def begin(self) -> Hungry:
            return Hungry()

    with pytest.raises(MemoryError):
        followed_tables.LaneFolds(LANE, [Large()], followed_tables.MemoryBudget()).take(windows(connection)[0])
    with pytest.raises(MemoryError):
        list(followed_tables.compare(connection, LANE, [Large()], due=0, after_each=lambda _: None))


def test_a_lane_too_large_to_fold_while_verifying_is_read_again_to_compare(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "CONCURRENT_EVENTS_MAX", EVENTS - 1)
    counted = CountedProgress()

    report = verifying.verify(verifying.Request(conninfo=url, lanes=(5, LANE)), counted)

    assert (report.findings, report.events) == ([], EVENTS)
    assert (counted.total, counted.done) == (3 * EVENTS, 3 * EVENTS)
