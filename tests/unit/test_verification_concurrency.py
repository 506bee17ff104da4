"""How many lanes a verification reads at once: many of a short log, few of a long one, as many for each worker. And how many workers
it has."""

import os

import pytest

from events.ids import LANES
from events.seal import Head
from hydracore.audit.verifying import CONCURRENT_EVENTS_MAX, EVENTS_PER_WORKER, WORKERS_MAX, _parts, _workers_for
from hydracore.audit.verifying_lanes import Job


@pytest.mark.parametrize(
    ("events", "workers", "sizes"),
    [
        (0, 1, [32, 32]),
        (CONCURRENT_EVENTS_MAX, 1, [32, 32]),
        (2 * CONCURRENT_EVENTS_MAX, 1, [32, 32]),
        (3 * CONCURRENT_EVENTS_MAX, 1, [16, 16, 16, 16]),
        (100 * CONCURRENT_EVENTS_MAX, 1, [16, 16, 16, 16]),
        (0, 2, [32, 32]),
        (100 * CONCURRENT_EVENTS_MAX, 2, [16, 16, 16, 16]),
        (0, 3, [22, 22, 20]),
    ],
)
def test_more_lanes_of_a_short_log_than_of_a_long_one_are_read_at_once(
    events: int, workers: int, sizes: list[int]
) -> None:
    jobs = [Job(lane=lane, upto=events // LANES) for lane in range(LANES)]

    parts = _parts(jobs, workers)

    assert [len(part) for part in parts] == sizes
    assert [job for part in parts for job in part] == jobs


@pytest.mark.parametrize(
    ("events", "processors", "workers"),
    [
        (0, 2, 1),
        (2 * EVENTS_PER_WORKER - LANES, 2, 1),
        (2 * EVENTS_PER_WORKER, 2, 2),
        (2 * EVENTS_PER_WORKER, 8, 2),
        (100 * EVENTS_PER_WORKER, 2, 2),
        (100 * EVENTS_PER_WORKER, None, 1),
        (100 * EVENTS_PER_WORKER, 64, WORKERS_MAX),
    ],
)
def test_the_verification_of_a_long_log_is_shared_among_processors(
    events: int, processors: int | None, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    jobs = [Job(lane=lane, upto=events // LANES) for lane in range(LANES)]

    assert _workers_for(jobs) == workers
    # The events before the head at which a job starts are not read again.
    assert _workers_for([Job(lane=job.lane, start=Head(job.upto, b""), upto=job.upto) for job in jobs]) == 1
