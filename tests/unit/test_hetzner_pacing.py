"""The gate that holds calls to the provider back, on clocks that the test moves."""

import asyncio

import pytest

from workers.providers.base import ProviderRetry
from workers.providers.hetzner_errors import RATE_LIMITED
from workers.providers.hetzner_pacing import (
    RESET_WAIT_S_MAX,
    RETRY_AFTER_S_MAX,
    RETRY_AFTER_S_MIN,
    SILENCE_S_MAX,
    UNREACHABLE,
    Pacer,
)


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

    async def refused_for_s(self, *, code: str = RATE_LIMITED, timeout_s: float = 0.0) -> float:
        """How long the gate stays closed, as a caller with this timeout learns it; 0 when it is open."""
        try:
            await self.pacer.wait_for_turn(timeout_s=timeout_s)
        except ProviderRetry as retry:
            assert retry.code == code
            return retry.retry_after_s
        return 0.0

    async def unreachable_for_s(self) -> float:
        """The same where the provider does not answer, of a call that takes 10 s at most."""
        return await self.refused_for_s(code=UNREACHABLE, timeout_s=10)

    def pass_in_silence(self, seconds: float) -> None:
        """Let time pass in which calls made now get no answer."""
        since = 100 + self.passed_s
        self.passed_s += seconds
        for _ in range(3):
            self.pacer.record_silence(since=since)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


async def test_the_gate_is_open_at_first_and_while_many_requests_remain(clocks: Clocks) -> None:
    assert await clocks.refused_for_s() == 0

    clocks.pacer.read_rate_limit(status=200, headers=clocks.limits(remaining=100))

    assert [await clocks.refused_for_s() for _ in range(5)] == [0] * 5


async def test_a_429_closes_the_gate_for_its_retry_after_time(clocks: Clocks) -> None:
    assert clocks.pacer.read_rate_limit(status=429, headers={"retry-after": "7"}) == 7

    assert await clocks.refused_for_s() == 7
    clocks.passed_s = 5
    assert await clocks.refused_for_s() == 2
    clocks.passed_s = 7
    assert await clocks.refused_for_s() == 0


async def test_a_later_429_with_a_shorter_wait_does_not_open_the_gate_sooner(clocks: Clocks) -> None:
    clocks.pacer.read_rate_limit(status=429, headers={"retry-after": "7"})

    clocks.pacer.read_rate_limit(status=429, headers={"retry-after": "1"})

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
async def test_a_429_closes_the_gate_for_a_bounded_time_whatever_its_headers(
    clocks: Clocks, headers: dict[str, str], wait_s: float
) -> None:
    assert clocks.pacer.read_rate_limit(status=429, headers=headers) == wait_s

    assert await clocks.refused_for_s() == wait_s


async def test_a_503_with_retry_after_delays_its_own_caller_within_bounds_and_no_other_call(clocks: Clocks) -> None:
    waits = [
        clocks.pacer.read_rate_limit(status=503, headers={"retry-after": text}) for text in ("0", "7", "999999", "soon")
    ]

    assert waits == [RETRY_AFTER_S_MIN, 7, RETRY_AFTER_S_MAX, None]
    assert await clocks.refused_for_s() == 0


async def test_a_caller_waiting_out_a_429_is_refused_when_another_429_comes_meanwhile(clocks: Clocks) -> None:
    clocks.pacer.read_rate_limit(status=429, headers={"retry-after": "7"})
    clocks.passed_s = 6.99
    waiting = asyncio.create_task(clocks.refused_for_s(timeout_s=5))
    await asyncio.sleep(0)

    clocks.pacer.read_rate_limit(status=429, headers={"retry-after": "9"})

    assert await waiting == pytest.approx(9)


async def test_calls_are_spaced_at_the_refill_rate_when_few_requests_remain(clocks: Clocks) -> None:
    clocks.pacer.read_rate_limit(status=200, headers=clocks.limits(remaining=0, reset_in_s=500))

    await clocks.pacer.wait_for_turn(timeout_s=10)

    # A thousand requests come back in 500 seconds.
    assert await clocks.refused_for_s() == 0.5
    clocks.passed_s = 0.5
    assert await clocks.refused_for_s() == 0
    clocks.pacer.read_rate_limit(status=200, headers=clocks.limits(remaining=999))
    assert await clocks.refused_for_s() == 0


async def test_invalid_rate_limit_headers_change_nothing(clocks: Clocks) -> None:
    clocks.pacer.read_rate_limit(
        status=200, headers={"ratelimit-limit": "many", "ratelimit-remaining": "0", "ratelimit-reset": "-1"}
    )

    assert [await clocks.refused_for_s() for _ in range(3)] == [0, 0, 0]


async def test_a_provider_that_does_not_answer_is_tried_by_one_call_at_a_time_with_growing_pauses(
    clocks: Clocks,
) -> None:
    pauses: list[float] = []
    for _ in range(5):
        assert await clocks.unreachable_for_s() == 0
        clocks.pass_in_silence(10)
        pauses.append(await clocks.unreachable_for_s())
        clocks.passed_s += pauses[-1]

    assert pauses == [1, 2, 4, 8, SILENCE_S_MAX]
    assert await clocks.unreachable_for_s() == 0
    assert await clocks.unreachable_for_s() == 10, "another call is under way"
    clocks.passed_s += 10
    assert await clocks.unreachable_for_s() == 0, "that call ended without a result"


async def test_any_answer_of_the_provider_reopens_the_gate(clocks: Clocks) -> None:
    clocks.pass_in_silence(10)
    assert await clocks.unreachable_for_s() == 1

    clocks.pacer.record_answer()

    assert [await clocks.unreachable_for_s() for _ in range(3)] == [0, 0, 0]


async def test_a_call_without_an_answer_does_not_close_the_gate_while_others_are_answered(clocks: Clocks) -> None:
    clocks.passed_s = 5
    clocks.pacer.record_answer()
    clocks.passed_s = 10

    clocks.pacer.record_silence(since=100)

    assert await clocks.unreachable_for_s() == 0
