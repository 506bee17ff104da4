"""The gate before each call, on clocks that the test moves."""

import pytest

from workers.providers.base import ProviderRetry
from workers.providers.hetzner_pacing import RESET_WAIT_S_MAX, RETRY_AFTER_S_MAX, RETRY_AFTER_S_MIN, Pacer


class Clocks:
    """Monotonic seconds from 100, Unix time from 1,000,000; both stand still unless moved."""

    def __init__(self) -> None:
        self.passed_s = 0.0
        self.pacer = Pacer(monotonic=lambda: 100 + self.passed_s, wall=lambda: 1_000_000 + self.passed_s)

    def limits(self, *, remaining: int, reset_in_s: int = 1000) -> dict[str, str]:
        return {
            "ratelimit-limit": "1000",
            "ratelimit-remaining": str(remaining),
            "ratelimit-reset": str(int(1_000_000 + self.passed_s) + reset_in_s),
        }

    async def refused_for_s(self) -> float:
        """How long the gate stays closed, as a caller without patience learns it; 0 when it is open."""
        try:
            await self.pacer.turn(patience_s=0.0)
        except ProviderRetry as retry:
            assert retry.code == "rate_limit_exceeded"
            return retry.retry_after_s
        return 0.0


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


async def test_the_gate_is_open_at_first_and_while_there_is_plenty(clocks: Clocks) -> None:
    assert await clocks.refused_for_s() == 0

    clocks.pacer.learn(status=200, headers=clocks.limits(remaining=100))

    assert [await clocks.refused_for_s() for _ in range(5)] == [0] * 5


async def test_a_429_closes_it_for_as_long_as_it_says(clocks: Clocks) -> None:
    assert clocks.pacer.learn(status=429, headers={"retry-after": "7"}) == 7

    assert await clocks.refused_for_s() == 7
    clocks.passed_s = 5
    assert await clocks.refused_for_s() == 2
    clocks.passed_s = 7
    assert await clocks.refused_for_s() == 0


async def test_a_later_and_shorter_429_does_not_open_it_sooner(clocks: Clocks) -> None:
    clocks.pacer.learn(status=429, headers={"retry-after": "7"})

    clocks.pacer.learn(status=429, headers={"retry-after": "1"})

    assert await clocks.refused_for_s() == 7


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"ratelimit-reset": "1000020"}, 20),
        ({"ratelimit-reset": "1009999"}, RESET_WAIT_S_MAX),
        ({"ratelimit-reset": "999"}, RETRY_AFTER_S_MIN),
        ({"retry-after": "0"}, RETRY_AFTER_S_MIN),
        ({}, 1),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 1),
        ({"retry-after": "999999"}, RETRY_AFTER_S_MAX),
        ({"retry-after": "²"}, 1),
    ],
)
async def test_other_429s_close_it_for_a_sensible_time(clocks: Clocks, headers: dict[str, str], wait_s: float) -> None:
    assert clocks.pacer.learn(status=429, headers=headers) == wait_s

    assert await clocks.refused_for_s() == wait_s


async def test_who_is_told_to_come_later_may_not_come_at_once_and_nobody_else_waits(clocks: Clocks) -> None:
    waits = [clocks.pacer.learn(status=503, headers={"retry-after": text}) for text in ("0", "7", "999999", "soon")]

    assert waits == [RETRY_AFTER_S_MIN, 7, RETRY_AFTER_S_MAX, None]
    assert await clocks.refused_for_s() == 0


async def test_near_the_end_calls_are_spaced_at_the_pace_of_the_refill(clocks: Clocks) -> None:
    clocks.pacer.learn(status=200, headers=clocks.limits(remaining=0, reset_in_s=500))

    await clocks.pacer.turn(patience_s=10)

    # A thousand requests come back in 500 seconds.
    assert await clocks.refused_for_s() == 0.5
    clocks.passed_s = 0.5
    assert await clocks.refused_for_s() == 0
    clocks.pacer.learn(status=200, headers=clocks.limits(remaining=999))
    assert await clocks.refused_for_s() == 0


async def test_headers_that_make_no_sense_change_nothing(clocks: Clocks) -> None:
    clocks.pacer.learn(
        status=200, headers={"ratelimit-limit": "many", "ratelimit-remaining": "0", "ratelimit-reset": "-1"}
    )

    assert [await clocks.refused_for_s() for _ in range(3)] == [0, 0, 0]
