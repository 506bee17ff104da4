"""How many lanes a verification reads side by side: many of a short log, few of a long one, as many for each worker."""

import pytest

from events.ids import LANES
from hydracore.audit.verifying import TOGETHER_EVENTS_MAX, _parts
from hydracore.audit.verifying_lanes import Job


@pytest.mark.parametrize(
    ("events", "workers", "sizes"),
    [
        (0, 1, [32, 32]),
        (TOGETHER_EVENTS_MAX, 1, [32, 32]),
        (2 * TOGETHER_EVENTS_MAX, 1, [32, 32]),
        (3 * TOGETHER_EVENTS_MAX, 1, [16, 16, 16, 16]),
        (100 * TOGETHER_EVENTS_MAX, 1, [16, 16, 16, 16]),
        (0, 2, [32, 32]),
        (100 * TOGETHER_EVENTS_MAX, 2, [16, 16, 16, 16]),
        (0, 3, [22, 22, 20]),
    ],
)
def test_short_logs_are_read_in_more_lanes_at_once(events: int, workers: int, sizes: list[int]) -> None:
    jobs = [Job(lane=lane, upto=events // LANES) for lane in range(LANES)]

    parts = _parts(jobs, workers)

    assert [len(part) for part in parts] == sizes
    assert [job for part in parts for job in part] == jobs
