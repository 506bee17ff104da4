"""A provider that takes every connection and answers nothing, and all that has nothing to do with it."""

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

#: More than there are threads: each would take all of its time if it were asked, and the last be done after a minute.
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
async def test_it_keeps_nobody_else_waiting(stack: Stack, silent: CloudsimProcess, tmp_path: Path) -> None:
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


async def test_what_takes_too_long_is_cut_off_and_says_so(stack: Stack) -> None:
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


async def test_it_is_asked_no_more_until_it_answers_again(cloudsim: CloudsimProcess) -> None:
    driver = driver_for(cloudsim, timeout_s=4)
    await cloudsim.freeze()
    first = await codes(driver, 2)
    then = await codes(driver, 100)

    cloudsim.send(signal.SIGCONT)
    await until(lambda: answers(driver))

    assert first == {"no_answer_in_time": 2}
    # Where starting them takes longer than the pause, one is let through to see.
    assert then["provider_unreachable"] >= 99
    assert not await codes(driver, CONCURRENCY_MAX)
    await driver.aclose()


async def test_one_look_for_the_key_serves_all_who_wait_for_it_also_if_it_fails(cloudsim: CloudsimProcess) -> None:
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


async def test_the_wait_for_calls_that_do_not_end_has_an_end(cloudsim: CloudsimProcess) -> None:
    driver = driver_for(cloudsim, timeout_s=4)
    cloudsim.fault("list_servers", "rate_limit", retry_after_s=2)
    cloudsim.fault("list_servers", "hold_before", times=None)
    assert await codes(driver, 1) == {"rate_limit_exceeded": 1}

    # They wait for their turn first, and then in vain.
    failed = await codes(driver, CONCURRENCY_MAX + 1)

    assert failed == {"no_answer_in_time": CONCURRENCY_MAX, "too_many_calls": 1}
    await driver.aclose()


async def test_an_answer_that_comes_a_byte_at_a_time_is_waited_for_no_longer_than_one_that_does_not_come() -> None:
    hung_up = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        with suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b" ")
                # Each of them far sooner than a silence would be one.
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
    """What so many questions at once fail with."""
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
