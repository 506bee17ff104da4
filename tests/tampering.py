"""Tampers with a log in a transaction that is rolled back; the verification runs inside that transaction."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

from events.lane_verification import LaneReport
from events.pacing import Pace
from events.verification_findings import Finding
from hydracore.audit.seal_check import check_seals, stored_seals
from hydracore.audit.verifying import Progress
from hydracore.audit.verifying_lanes import Job, verify_lanes
from hydracore.signals import run_to_completion
from tests.sealed_log import LANE, Forger, sealed_log
from tests.services import Services

EVENT = "UPDATE event SET {} WHERE lane = 6 AND seq = {}"
COMMAND = "UPDATE command SET {} WHERE lane = 6 AND first_seq = {}"
DROP_EVENT = "DELETE FROM event WHERE lane = 6 AND seq = {}"
DROP_COMMAND = "DELETE FROM command WHERE lane = 6 AND first_seq = {}"
FORGE = "payload = replace(payload::text, 'first', 'forged')::json"

#: The kind of a finding, and its number.
Place = tuple[str, int | None]


class CountedProgress(Progress):
    """How much there was to do, and how much of it was done."""

    total = done = 0

    def begin(self, total: int) -> None:
        self.total = total

    def advance(self, done: int) -> None:
        self.done += done


@contextmanager
def module_database(services: Services, name: str, make: Callable[[str], Coroutine[Any, Any, None]]) -> Generator[str]:
    """The URL of a database that `make` has filled, for all tests of a module."""
    name = f"{name}_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    url = services.create_database(name)
    run_to_completion(make(url))
    yield url
    services.drop_database(name)


@pytest.fixture(scope="module", name="url")
def sealed_url_fixture(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    async def make(url: str) -> None:
        async with sealed_log(url, tmp_path_factory.mktemp("seals")):
            pass

    with module_database(services, "tampering", make) as url:
        yield url


@pytest.fixture
def connection(url: str) -> Generator[psycopg.Connection]:
    """A connection that only reads."""
    with psycopg.connect(url, autocommit=True) as connected:
        yield connected


@pytest.fixture
def forger(url: str) -> Generator[Forger]:
    """A forger with the owner's rights, in a transaction that is rolled back."""
    with psycopg.connect(url) as connection:
        yield Forger(connection)
        connection.rollback()


def places(findings: list[Finding]) -> set[Place]:
    return {(finding.kind, finding.seq) for finding in findings if finding.lane == LANE}


def lane_findings(forger: Forger, *, replay: bool = False, sealed: bool = True) -> list[Finding]:
    """The findings in the lane. `sealed`: whether it is compared with its seals."""
    return lane_report(forger, replay=replay, sealed=sealed).findings


def lane_report(forger: Forger, *, replay: bool = False, sealed: bool = True) -> LaneReport:
    """The report on the lane. It does not depend on when followed projections are folded. See `lane_findings`."""
    seals = stored_seals(forger.connection) if sealed else ()
    job = Job(lane=LANE, points=check_seals(seals, (), public_key=None).points(LANE), replay=replay)
    report = _verify_lane(forger, job)
    if replay:
        assert _verify_lane(forger, replace(job, fold_while_verifying=True)) == report
    return report


def _verify_lane(forger: Forger, job: Job) -> LaneReport:
    # With this clock, each piece of work counts as long, so that the heads are read after it.
    pace = Pace(clock=itertools.count().__next__, sleep=lambda _: None)
    (report,) = verify_lanes(forger.connection, [job], pace, lambda _: None)
    return report
