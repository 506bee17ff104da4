"""What is verified is folded at once: the windows of a lane give the facts that followers read, and nothing is read twice."""

from __future__ import annotations

from collections.abc import Generator

import psycopg
import pytest
from msgspec.structs import asdict

from events import commands as c
from events.verify import Lane, read
from events.window import Window
from hydracore.audit import sums, verifying_lanes
from hydracore.audit.served import served
from hydracore.audit.window_facts import WindowFacts
from projections.fact import Reader, read_facts
from tests import lives
from tests.audit_log import LANE, SEALED_AT, Forger, follow, sealed_log
from tests.requests_to_log import NOW_MS, origin
from tests.services import Services
from tests.tampering import find, forger, made_once

__all__ = ["forger"]

#: What the lane of `sealed_log` has, and what is added here.
EVENTS = SEALED_AT[-1] + 2


@pytest.fixture(scope="module")
def url(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    async def make(url: str) -> None:
        async with sealed_log(url, tmp_path_factory.mktemp("seals")) as log:
            await log.store.execute(log.ids[0], lives.usage(1), origin("agent"))
            deletion = c.RequestDeletion(at_ms=NOW_MS, reason="enough of it")
            await log.store.execute(log.ids[1], deletion, origin("customer:ada"))
            await follow(log)

    with made_once(services, "window_facts", make) as url:
        yield url


@pytest.fixture
def connection(url: str) -> Generator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as connected:
        yield connected


def windows(connection: psycopg.Connection) -> list[Window]:
    found: list[Window] = []
    read(connection, [Lane(LANE, fitting=found.append)], after_each=lambda _: None)
    return found


def begun(connection: psycopg.Connection) -> sums.Begun:
    folds = sums.Begun(LANE, served(connection).followed)
    for window in windows(connection):
        folds.take(window)
    return folds


def pages_read(connection: psycopg.Connection, folds: sums.Begun) -> int:
    """How many pages of the lane are read to compare it, which must agree."""
    pages = 0

    def count() -> None:
        nonlocal pages
        pages += 1

    followed = served(connection).followed
    assert list(sums.compare(connection, LANE, followed, due=0, after_each=count, begun=folds)) == []
    return pages


@pytest.mark.parametrize("told", [None, ()], ids=["with what is said", "without what is said"])
async def test_windows_give_the_facts_that_followers_read(
    url: str, connection: psycopg.Connection, told: tuple[str, ...] | None
) -> None:
    reader = Reader("reader", 1, None, payloads=told is None)

    of_windows = [each for window in windows(connection) for each in WindowFacts(LANE, told).of(window)]

    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as asking:
        found = await read_facts(asking, [(LANE, 0)], [reader], heads={LANE: EVENTS}, limit=100)
    followed = reader.decode(found.positions[(LANE, 0)], found.skipped)
    assert [asdict(fact) for _, fact in of_windows] == [asdict(fact) for fact in followed]
    assert [name for name, _ in of_windows] == [fact.type for fact in followed]
    assert len(of_windows) == EVENTS


def test_what_was_verified_is_not_read_again_for_what_adds_up(connection: psycopg.Connection) -> None:
    assert pages_read(connection, begun(connection)) == 0


def test_what_came_since_it_was_verified_is_read(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.verify.WINDOW", 4)
    folds = sums.Begun(LANE, served(connection).followed)
    first, *_ = windows(connection)
    folds.take(first)

    assert 0 < folds.upto < EVENTS
    assert pages_read(connection, folds) == 1


def test_folds_that_know_more_than_a_follower_are_made_anew(url: str) -> None:
    with psycopg.connect(url) as connection:
        folds = begun(connection)
        connection.execute("DELETE FROM activity")
        connection.execute("UPDATE checkpoint SET seq = 0 WHERE follower = 'activity' AND lane = 6")

        assert pages_read(connection, folds) == 1
        connection.rollback()


def test_folds_that_lack_a_window_are_made_anew(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.verify.WINDOW", 4)
    folds = sums.Begun(LANE, served(connection).followed)
    first, _, *others = windows(connection)
    for window in (first, *others):
        folds.take(window)

    assert others
    assert pages_read(connection, folds) == 1


@pytest.mark.parametrize("events_max", [EVENTS, EVENTS - 1], ids=["while it is read", "afterwards"])
def test_what_adds_up_is_compared_whenever_it_was_added_up(
    forger: Forger, monkeypatch: pytest.MonkeyPatch, events_max: int
) -> None:
    monkeypatch.setattr(verifying_lanes, "ADDED_UP_MAX", events_max)
    forger.do("DELETE FROM activity WHERE command = 'PlanServer'")

    (found,) = find(forger, replay=True)

    assert (found.kind, found.table, found.lane) == ("row_missing", "activity", LANE)
