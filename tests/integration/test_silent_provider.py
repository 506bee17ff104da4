"""A provider that accepts every connection and never answers, and the work that does not need it."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

import pytest

from hydracore.settings import PACKAGED_CATALOGUE
from tests.cloudsim_fixtures import (  # noqa: F401 - fixtures
    CloudsimProcess,
    cloudsim_fixture,
    driver_for,
    module_cloudsim_fixture,
    user_data,
)
from tests.stack import Stack
from tests.waiting import PATIENCE_S, until
from workers.advance import advance
from workers.providers.base import CreateServer, ProviderError, ProviderOutcomeUnknown
from workers.providers.hetzner import HetznerProvider
from workers.providers.hetzner_http import CONCURRENCY_MAX, HetznerHttp
from workers.providers.hetzner_wire import ONE_SERVER

#: More instances than threads: if each asked the provider until its timeout, the last would be done after a minute.
WAITING = 24


@pytest.fixture
async def silent(tmp_path: Path) -> AsyncGenerator[CloudsimProcess]:
    """A second provider, which a test may stop."""
    process = CloudsimProcess(tmp_path / "cloudsim")
    await process.start(boot="inline")
    yield process
    process.send(signal.SIGCONT)
    process.close()


@pytest.mark.long
async def test_a_provider_that_does_not_answer_does_not_delay_instances_of_another_provider(
    stack: Stack, silent: CloudsimProcess, tmp_path: Path
) -> None:
    catalogue = tmp_path / "catalogue.toml"
    elsewhere = PACKAGED_CATALOGUE.read_text().replace("https://api.hetzner.cloud/v1", silent.endpoint)
    elsewhere = elsewhere.replace("HYDRACORE_HETZNER_TOKEN", "HYDRACORE_CLOUDSIM_TOKEN")
    catalogue.write_text(elsewhere.replace("cx23", "sim1").replace('location = "fsn1"', 'location = "local1"'))
    settings = {"catalogue": str(catalogue), "worker_threads": "4"}
    async with stack.restarted(**settings):
        leaving = await stack.running()
        await silent.freeze()
        waiting = await asyncio.gather(*(stack.create(region_id="fsn1") for _ in range(WAITING)))
        tried = "SELECT 1 FROM attention WHERE failures > 0 AND instance_id = ANY (%s)"
        await stack.until(lambda: len(stack.rows(tried, waiting)) > 1)

        await stack.delete(leaving)
        await stack.running()
        await stack.until_status(leaving, "deleted")

        assert not any(stack.has_happened(instance_id, "server_created") for instance_id in waiting)
        silent.send(signal.SIGCONT)
        for instance_id in waiting:
            await stack.delete(instance_id)
        for instance_id in waiting:
            await stack.until_status(instance_id, "deleted")
        assert silent.servers() == []


async def test_a_step_that_exceeds_its_time_limit_is_cancelled_and_recorded_as_too_slow(stack: Stack) -> None:
    stack.worker.kill()
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "hold_before", name=f"hc-{instance_id}")
    await stack.create(key)

    async with stack.deps(provider_timeout_s="30") as deps:
        await advance(deps, instance_id, limit_s=1)

    trouble = "SELECT code, failures FROM attention WHERE instance_id = %s"
    assert stack.rows(trouble, instance_id) == [("took_too_long", 1)]
    stack.cloudsim.call("POST", "/_sim/release", {"all": True, "apply": False})
    stack.worker.start()
    await stack.until_status(instance_id, "running")


async def test_a_provider_that_does_not_answer_gets_no_further_calls_until_it_answers_again(
    cloudsim: CloudsimProcess,
) -> None:
    driver = driver_for(cloudsim, timeout_s=4)
    await cloudsim.freeze()
    first = await codes(driver, 2)
    then = await codes(driver, 100)

    cloudsim.send(signal.SIGCONT)
    await until(lambda: answers(driver))

    assert first == {"no_answer_in_time": 2}
    # If starting them takes longer than the pause, one call is let through to probe.
    assert then["provider_unreachable"] >= 99
    assert not await codes(driver, CONCURRENCY_MAX)
    await driver.aclose()


async def test_concurrent_creates_share_one_lookup_of_the_ssh_key_even_if_it_fails(cloudsim: CloudsimProcess) -> None:
    driver = driver_for(cloudsim, timeout_s=60)
    cloudsim.fault("list_ssh_keys", "hold_before")
    before = cloudsim.requests("list_ssh_keys")
    creates = asyncio.gather(*(driver.create_server(order(number)) for number in range(5)), return_exceptions=True)
    await until(cloudsim.held)

    cloudsim.call("POST", "/_sim/release", {"all": True, "apply": False})

    assert {str(error) for error in await creates} == {"connection_broke"}
    assert cloudsim.requests("list_ssh_keys") == before + 1
    assert (await driver.create_server(order(0))).server.name == "hc-0"
    await driver.aclose()


async def test_a_call_that_waits_behind_calls_without_an_answer_is_refused(cloudsim: CloudsimProcess) -> None:
    driver = driver_for(cloudsim, timeout_s=4)
    cloudsim.fault("list_servers", "rate_limit", retry_after_s=2)
    cloudsim.fault("list_servers", "hold_before", times=None)
    assert await codes(driver, 1) == {"rate_limit_exceeded": 1}

    # The calls wait for their turn, and then for an answer that does not come.
    failed = await codes(driver, CONCURRENCY_MAX + 1)

    assert failed == {"no_answer_in_time": CONCURRENCY_MAX, "too_many_calls": 1}
    await driver.aclose()


async def test_an_answer_that_arrives_byte_by_byte_is_subject_to_the_timeout_of_the_whole_call() -> None:
    hung_up = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        with suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b" ")
                # Each byte comes long before the timeout.
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await reader.read(1_024)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        hung_up.set()

    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as server:
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        http = HetznerHttp(endpoint, "token", timeout_s=0.5)
        with pytest.raises(ProviderOutcomeUnknown, match="no_answer_in_time"):
            await http.change("POST", "servers", ONE_SERVER, {})
        await http.aclose()
        async with asyncio.timeout(PATIENCE_S):
            await hung_up.wait()


async def codes(driver: HetznerProvider, count: int) -> Counter[str]:
    """The errors of this many concurrent calls."""
    answered = await asyncio.gather(
        *(driver.find_servers({"hc-installation": "hydracore"}) for _ in range(count)), return_exceptions=True
    )
    return Counter(error.code for error in answered if isinstance(error, ProviderError))


async def answers(driver: HetznerProvider) -> bool:
    return not await codes(driver, 1)


def order(number: int) -> CreateServer:
    return CreateServer(
        name=f"hc-{number}",
        server_type="sim1",
        location="local1",
        image="debian-13",
        user_data=user_data(),
        labels={"hc-installation": "hydracore"},
    )
