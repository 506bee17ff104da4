"""Long reads pause while events are written, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from events.ids import LANES
from events.pacing import FACTOR_MAX, REST_S_MAX, Pace
from hydracore.audit import seal_check
from hydracore.audit.exporting import Request as ExportRequest
from hydracore.audit.exporting import export
from hydracore.audit.verifying import Progress, Report, Request, _check_seals, verify
from projections import generations
from projections.candidate import Candidate
from projections.folding import _fold_claim, fold_lanes
from projections.instance import InstanceProjection
from projections.rebuild import rebuild
from projections.swap_preparation import catch_up
from tests.rebuilding import QUIET, fold_here
from tests.sealed_log import Log, sealed_log
from tests.store_commands import create_instance
from tests.waiting import BETWEEN_WRITES_S


class Time:
    """A clock that advances only by work and sleep."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
async def log(database_url: str, tmp_path: Path) -> AsyncGenerator[Log]:
    async with sealed_log(database_url, tmp_path) as made:
        yield made


async def write_until(stop: asyncio.Event, log: Log) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        await create_instance(log.store, key=f"{number}")
        await asyncio.sleep(BETWEEN_WRITES_S)


async def test_pauses_grow_with_the_number_of_events_written(log: Log) -> None:
    time = Time()
    pace = Pace(clock=lambda: time.now_s, sleep=time.advance)
    rested = list[float]()
    with psycopg.connect(log.url, autocommit=True) as connection:
        # The first call has no earlier figure to compare with. Then no event, one and five are written meanwhile.
        for written in (0, 0, 1, 5):
            time.advance(0.1)
            for number in range(written):
                await log.rename(number % 3, f"name {written} {number}")
            before_s = time.now_s
            pace.rest(connection)
            rested.append(time.now_s - before_s)

    assert rested[:2] == [0, 0]
    assert 0 < rested[2] < rested[3] < 0.1 * FACTOR_MAX
    assert pace.rested_s == pytest.approx(sum(rested))


async def test_pauses_are_limited_and_full_speed_makes_none(log: Log) -> None:
    time = Time()

    def pace(*, full_speed: bool = False, total_s_max: float = 60) -> Pace:
        return Pace(full_speed=full_speed, total_s_max=total_s_max, clock=lambda: time.now_s, sleep=time.advance)

    paces = (pace(), pace(total_s_max=1), pace(full_speed=True))
    with psycopg.connect(log.url, autocommit=True) as connection:
        for one in paces:
            time.advance(0.1)
            one.rest(connection)
        for number in range(200):
            await log.rename(number % 3, f"name {number}")
        for one in paces:
            time.advance(60)
            one.rest(connection)

    assert [one.rested_s for one in paces] == [REST_S_MAX, 1, 0]


async def test_a_rebuild_that_catches_up_pauses_no_longer_than_it_works(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.swap_preparation.CLOSE_EVENTS", 0)
    projection, ticks = InstanceProjection(), count()
    pace = Pace(clock=lambda: 0.05 * next(ticks))
    async with await psycopg.AsyncConnection.connect(log.url, autocommit=True) as connection:
        build = await generations.begin(connection, projection)
        fold_lanes(log.url, projection, build)
        await generations.index(connection, projection, build)
        candidate = Candidate.of(projection, build, None, pace)
        # The first call has no earlier figure to compare with.
        await pace.rest_async(connection)
        rested = [pace.rested_s]
        for number in range(3):
            await log.rename(number, f"name {number}")
        took = await catch_up(connection, candidate)
        rested.append(pace.rested_s)

    assert took == 3
    assert rested[0] == 0 < rested[1] < 0.05 * next(ticks)


async def test_a_rebuild_pauses_after_indexing_and_comparing_only_while_events_are_written(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.pacing.PIECE_S_MIN", 0)
    # The pauses while it catches up are covered by the test above.
    monkeypatch.setattr("projections.swap_preparation.REST_FACTOR_MAX", 0)

    async def rested(*, full_speed: bool = False) -> float:
        report = await rebuild(
            log.url,
            InstanceProjection(),
            folding=fold_here(log.url),
            callbacks=QUIET,
            accept_drift=True,
            full_speed=full_speed,
        )
        return report.rested_s

    alone = await rested()
    stop = asyncio.Event()
    writing = asyncio.create_task(write_until(stop, log))
    while not await rested():
        pass  # Such a log may be folded and compared before anything is written.
    hurried = await rested(full_speed=True)
    stop.set()
    await writing

    assert (alone, hurried) == (0, 0)


async def test_a_fold_offers_a_pause_after_a_piece_of_work(log: Log) -> None:
    projection, offers = InstanceProjection(), list[None]()
    async with await psycopg.AsyncConnection.connect(log.url, autocommit=True) as connection:
        build = await generations.begin(connection, projection)
    key = build.key | {"version": projection.version, "limit": LANES}

    with (
        psycopg.connect(log.url, autocommit=True) as reader,
        psycopg.connect(log.url, autocommit=True) as writer,
    ):
        writer.execute(f"SET search_path TO {build.schema}, public".encode())
        folded = _fold_claim(reader, writer, projection, key, rest=lambda: offers.append(None))

    assert folded == 1
    assert offers


async def test_verification_and_export_pause_only_while_events_are_written(log: Log, tmp_path: Path) -> None:
    def verified(*, full_speed: bool = False) -> float:
        return verify(Request(conninfo=log.url, full_speed=full_speed), Progress()).rested_s

    def exported() -> float:
        request = ExportRequest(
            conninfo=log.url,
            output=tmp_path / "export",
            exported_at=datetime.now(UTC),
            tenant_id="acme",
            replace=True,
        )
        return export(request, Progress()).rested_s

    def until_it_rests(work: Callable[[], float]) -> None:
        """A log of a few events may be read before anything is written."""
        while not work():
            pass

    alone = (verified(), exported())
    stop = asyncio.Event()
    writing = asyncio.create_task(write_until(stop, log))
    await asyncio.to_thread(until_it_rests, verified)
    await asyncio.to_thread(until_it_rests, exported)
    hurried = await asyncio.to_thread(verified, full_speed=True)
    stop.set()
    await writing

    assert alone == (0, 0)
    assert hurried == 0


async def test_seal_checks_pause_between_pages_without_an_open_transaction(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal_check, "SEALS_MAX", 1)
    request = Request(conninfo=log.url, seals=log.file)
    open_at_rest = set[bool]()

    def until_it_rests() -> None:
        with psycopg.connect(log.url, autocommit=True) as connection:

            def sleep(_seconds: float) -> None:
                open_at_rest.add(connection.info.transaction_status is not TransactionStatus.IDLE)

            while not open_at_rest:
                _check_seals(connection, request, Report(lanes=1), Pace(clock=count().__next__, sleep=sleep))

    resting = asyncio.create_task(asyncio.to_thread(until_it_rests))
    names = map(str, count())
    while not resting.done():
        await log.rename(0, next(names))
        await asyncio.sleep(BETWEEN_WRITES_S)
    await resting

    assert open_at_rest == {False}
