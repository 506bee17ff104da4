"""Lanes that several processes verify: how far these are is told meanwhile, and one of them that dies is no finding."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children

import psycopg
import pytest

from hydracore.audit.verifying import Request, verify
from tests.sealed_log import SEALED_AT, Forger, follow, sealed_log
from tests.services import Services
from tests.tampering import CountedProgress, forger, made_once

__all__ = ["forger"]

#: Each event is looked at for the chain and for its rows.
TO_DO = 2 * SEALED_AT[-1]

#: The sessions that wait for the table.
WAITING = "SELECT pid FROM pg_locks WHERE relation = 'activity'::regclass AND NOT granted ORDER BY pid"


@pytest.fixture(scope="module")
def url(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    async def make(url: str) -> None:
        async with sealed_log(url, tmp_path_factory.mktemp("seals")) as log:
            await follow(log)

    with made_once(services, "workers", make) as url:
        yield url


class Told(CountedProgress):
    """Calls `then` as soon as all events are told of."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def advance(self, done: int) -> None:
        before = self.done
        super().advance(done)
        if before < TO_DO <= self.done:
            self._then()


def test_how_far_they_are_is_told_while_they_work(url: str, forger: Forger) -> None:
    # None can end before.
    forger.do("LOCK TABLE activity IN ACCESS EXCLUSIVE MODE")
    progress = Told(forger.connection.rollback)

    report = verify(Request(conninfo=url, workers=2), progress)

    assert (report.findings, report.events) == ([], SEALED_AT[-1])
    assert (progress.total, progress.done) == (TO_DO, TO_DO)


def test_one_that_is_killed_is_no_finding_and_leaves_nothing_behind(url: str, forger: Forger) -> None:
    forger.do("LOCK TABLE activity IN ACCESS EXCLUSIVE MODE")
    before = active_children()

    def kill_the_last() -> None:
        """Of which the pool learns nothing as long as the first has no answer."""
        *_, last = sorted(set(active_children()) - set(before), key=lambda child: child.pid or 0)
        last.kill()

    with pytest.raises(BrokenProcessPool):
        verify(Request(conninfo=url, workers=2), Told(kill_the_last))
    assert active_children() == before


@pytest.mark.parametrize("number", [0, 1])
def test_what_one_of_them_fails_with_is_told_while_the_others_work(url: str, forger: Forger, number: int) -> None:
    forger.do("LOCK TABLE activity IN ACCESS EXCLUSIVE MODE")

    def end_one() -> None:
        waiting = list[int]()
        while len(waiting) < 2:
            waiting = [pid for (pid,) in forger.connection.execute(WAITING)]
        forger.connection.execute("SELECT pg_terminate_backend(%s)", (waiting[number],))

    with pytest.raises(psycopg.OperationalError):
        verify(Request(conninfo=url, workers=2), Told(end_one))
