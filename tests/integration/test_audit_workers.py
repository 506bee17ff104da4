"""Lanes verified by several processes: their progress is reported meanwhile, and the death of one is no finding."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children

import psycopg
import pytest

from hydracore.audit.verifying import Request, verify
from tests.sealed_log import SEALED_AT, Forger, sealed_log, update_projections
from tests.services import Services
from tests.tampering import CountedProgress, forger, module_database

__all__ = ["forger"]

#: Each event is read once for the chain and once for its rows.
TO_DO = 2 * SEALED_AT[-1]

#: The sessions that wait for the table.
WAITING = "SELECT pid FROM pg_locks WHERE relation = 'activity'::regclass AND NOT granted ORDER BY pid"


@pytest.fixture(scope="module")
def url(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    async def make(url: str) -> None:
        async with sealed_log(url, tmp_path_factory.mktemp("seals")) as log:
            await update_projections(log)

    with module_database(services, "workers", make) as url:
        yield url


class CallingAtTheEnd(CountedProgress):
    """Calls `then` as soon as all events are reported."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def advance(self, done: int) -> None:
        before = self.done
        super().advance(done)
        if before < TO_DO <= self.done:
            self._then()


def test_progress_is_reported_while_processes_verify(url: str, forger: Forger) -> None:
    # No process can end before the lock is released.
    forger.do("LOCK TABLE activity IN ACCESS EXCLUSIVE MODE")
    progress = CallingAtTheEnd(forger.connection.rollback)

    report = verify(Request(conninfo=url, workers=2), progress)

    assert (report.findings, report.events) == ([], SEALED_AT[-1])
    assert (progress.total, progress.done) == (TO_DO, TO_DO)


def test_a_killed_process_is_an_error_and_no_finding_and_leaves_no_process_behind(url: str, forger: Forger) -> None:
    forger.do("LOCK TABLE activity IN ACCESS EXCLUSIVE MODE")
    before = active_children()

    def kill_the_last() -> None:
        """The pool does not wait for this one as long as the first has not answered."""
        *_, last = sorted(set(active_children()) - set(before), key=lambda child: child.pid or 0)
        last.kill()

    with pytest.raises(BrokenProcessPool):
        verify(Request(conninfo=url, workers=2), CallingAtTheEnd(kill_the_last))
    assert active_children() == before


@pytest.mark.parametrize("number", [0, 1])
def test_the_error_of_one_process_is_raised_while_the_others_still_work(url: str, forger: Forger, number: int) -> None:
    forger.do("LOCK TABLE activity IN ACCESS EXCLUSIVE MODE")

    def end_one() -> None:
        waiting = list[int]()
        while len(waiting) < 2:
            waiting = [pid for (pid,) in forger.connection.execute(WAITING)]
        forger.connection.execute("SELECT pg_terminate_backend(%s)", (waiting[number],))

    with pytest.raises(psycopg.OperationalError):
        verify(Request(conninfo=url, workers=2), CallingAtTheEnd(end_one))
