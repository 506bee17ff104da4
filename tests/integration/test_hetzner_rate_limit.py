"""The Hetzner driver stays within the provider's rate limit: it slows down, waits, and refuses at once what would wait too long."""

import asyncio
import time

import pytest

from tests.cloudsim_fixtures import CloudsimProcess
from tests.hetzner_calls import LABELS
from tests.waiting import until
from workers.providers.base import Provider, ProviderLater, ProviderRetry
from workers.providers.hetzner_pacing import RESET_WAIT_S_MAX


async def test_a_429_stops_all_calls_of_the_driver_until_its_retry_time(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.fault("get_server", "rate_limit", retry_after_s=1)
    with pytest.raises(ProviderRetry) as limited:
        await driver.get_server("1")
    began_s = time.monotonic()

    await asyncio.gather(driver.get_server("1"), driver.find_servers(LABELS))

    assert limited.value.retry_after_s == 1.0
    assert time.monotonic() - began_s >= 0.9


async def test_the_retry_time_of_an_unavailable_provider_is_passed_on(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.fault("get_server", "server_error", status=503, code="unavailable", retry_after_s=70)

    with pytest.raises(ProviderLater) as away:
        await driver.get_server("1")

    assert away.value.retry_after_s == 70


async def test_a_call_that_would_wait_longer_than_a_call_may_take_is_refused_at_once(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.fault("get_server", "rate_limit", retry_after_s=3000)
    with pytest.raises(ProviderRetry):
        await driver.get_server("1")
    before = cloudsim.call("GET", "/_sim/requests")

    with pytest.raises(ProviderRetry) as limited:
        await driver.find_servers(LABELS)

    assert 2900 < limited.value.retry_after_s <= 3000
    assert cloudsim.call("GET", "/_sim/requests") == before


async def test_calls_slow_down_before_the_rate_limit_is_reached(cloudsim: CloudsimProcess, driver: Provider) -> None:
    cloudsim.call("PUT", "/_sim/rate_limit", {"limit": 1000, "remaining": 12, "refill_per_s": 20})

    for _ in range(30):
        await driver.get_server("1")

    # Twelve calls were left and thirty were made: without slowing down, the thirteenth would have met a 429.


async def test_a_call_beyond_the_rate_limit_is_refused_as_rate_limit_exceeded(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.call("PUT", "/_sim/rate_limit", {"limit": 100, "remaining": 0, "refill_per_s": 0.001})

    with pytest.raises(ProviderRetry) as limited:
        await driver.get_server("1")

    assert limited.value.code == "rate_limit_exceeded"


async def test_a_429_that_says_only_when_all_of_the_allowance_is_back_is_waited_for_a_minute_at_most(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.call("PUT", "/_sim/rate_limit", {"limit": 3600, "remaining": 0, "refill_per_s": 1})

    with pytest.raises(ProviderRetry) as limited:
        await driver.get_server("1")

    assert limited.value.retry_after_s == RESET_WAIT_S_MAX


async def test_concurrent_calls_are_limited_to_16_and_all_are_answered(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.fault("get_server", "hold_before", times=None)
    asking = [asyncio.create_task(driver.get_server("1")) for _ in range(40)]
    await until(lambda: len(cloudsim.held()) == 16)

    cloudsim.call("DELETE", "/_sim/faults")
    cloudsim.call("POST", "/_sim/release", {"all": True, "apply": True})

    assert await asyncio.gather(*asking) == [None] * 40
