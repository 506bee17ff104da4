"""`hydracore up` as a user runs it: one process in a terminal, everything behind it."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from hydracore.embedded.home import Home
from hydracore.embedded.ports import free_port
from hydracore.transport import EMPTY_TRUST_STORE
from tests.up_program import READY_S_MAX, REPOSITORY, Up, home_fixture, processes_of, up_fixture  # noqa: F401 - fixtures
from tests.waiting import until

KEYS = {
    *("url", "tenant_id", "admin", "customer", "other_customer", "other_tenant", "api_key"),
    *("database_url", "redis_url", "cloudsim_url", "cloudsim_token", "modelsim_url", "pids"),
}


#: The names of all parts, and of their logs.
PARTS = ("api", "relay", "worker-1", "cloudsim", "modelsim", "postgres", "valkey")


def stores_of(home: Path) -> list[psutil.Process]:
    """PostgreSQL and Valkey, with their children."""
    return [process for process in processes_of(home) if process.info["name"] in {"postgres", "valkey-server"}]


def alive(pids: dict[str, list[int]]) -> list[int]:
    return [pid for group in pids.values() for pid in group if psutil.pid_exists(pid)]


async def status_of(url: str, **headers: str) -> int:
    async with httpx.AsyncClient(timeout=READY_S_MAX, trust_env=False, verify=EMPTY_TRUST_STORE) as client:
        return (await client.get(url, headers=headers)).status_code


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_up_starts_survives_kills_stops_and_comes_back_with_the_same_data(
    up: Callable[..., Up], home: Path
) -> None:
    port = free_port()
    one = up(port, "--workers", "2")
    first = await one.ready()
    assert first["url"] == f"http://127.0.0.1:{port}"
    assert one.dev_file.stat().st_mode & 0o777 == 0o600
    await assert_complete(first)
    customer = {"Authorization": f"Bearer {first['customer']['token']}"}
    instance = await running_instance(first["url"], customer)

    await assert_the_readme_runs(first, customer, port, home)
    await kill_everything(one, home)
    await until(lambda: counts_slowly(first["modelsim_url"]))
    output, troubles = one.stop()
    stopped_at = datetime.now(UTC)
    told = {
        line.partition(" has ended (signal SIGKILL) and is being restarted; see ")[0] for line in troubles.splitlines()
    }
    assert told >= {"api", "relay", "worker-1", "worker-2", "cloudsim", "modelsim"}
    assert output.endswith("stopping ...\nstopped\n")
    assert f"HydraCore is up at {first['url']}" in output
    assert output.count("curl -s") == 7
    assert not alive(first["pids"])

    again = up(free_port(), HYDRACORE_MODEL_BASE_URL="https://models.example/v1")
    second = await again.ready()
    assert (second["modelsim_url"], second["pids"]["modelsim"]) == (None, [])
    await assert_same(first, second, instance.replace(first["url"], second["url"]), stopped_at)

    refused = up(free_port())
    _, complaint = await asyncio.to_thread(refused.process.communicate)
    assert refused.process.returncode == 2
    assert complaint == f"hydracore: {home} is in use by another `hydracore up` (pid {again.process.pid})\n"

    again.process.kill()
    await asyncio.to_thread(again.process.communicate)
    assert alive(second["pids"]), "the parts of a killed `up` still run, and must not block the next one"
    for name in PARTS:
        log = Home(home).logs / f"{name}.log"
        log.unlink(missing_ok=True)
        log.symlink_to("/dev/full")
    last = up(port)
    await until(lambda: not alive(second["pids"]))
    assert (await last.ready())["database_url"] == first["database_url"]
    assert await status_of(instance, **customer) == 200
    await assert_it_lives_without_logs(last, home, instance, customer)
    last.stop(signal.SIGTERM)


async def assert_complete(dev: dict[str, Any]) -> None:
    """Every entry is there, and every part runs."""
    assert set(dev) == KEYS
    running = {"api": 1, "relay": 1, "worker": 2, "cloudsim": 1, "modelsim": 1}
    assert {kind: len(pids) for kind, pids in dev["pids"].items()} == running
    assert await status_of(f"{dev['modelsim_url']}/v1/models") == 200
    (relay,) = dev["pids"]["relay"]
    given = {name for name in psutil.Process(relay).environ() if name.startswith("HYDRACORE")}
    assert not given & {"HYDRACORE_MASTER_KEY", "HYDRACORE_CLOUDSIM_TOKEN", "HYDRACORE_JWT_SECRET"}, (
        "the relay needs none of them"
    )


async def running_instance(url: str, headers: dict[str, str]) -> str:
    """The URL of a new instance, once it runs."""
    body = {"region_id": "local", "tier_id": "starter", "idempotency_key": "kept"}
    async with httpx.AsyncClient(timeout=READY_S_MAX, trust_env=False, verify=EMPTY_TRUST_STORE) as client:
        created = await client.post(f"{url}/v1/instances", json=body, headers=headers)
    instance = f"{url}/v1/instances/{created.json()['instance_id']}"
    await until_status(instance, headers, "running")
    return instance


def blocks_of_the_readme(section: str, port: int, home: Path) -> list[str]:
    """The blocks that a reader pastes."""
    text = (REPOSITORY / "README.md").read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    program = f"{sys.executable} -m hydracore"
    here = (
        text.replace(":8080/", f":{port}/").replace(".hydracore/", f"{home}/").replace(".venv/bin/hydracore", program)
    )
    return here.split("```\n")[1::2]


def bash(script: str) -> str:
    return subprocess.run(["bash", "-euc", script], check=True, stdout=subprocess.PIPE, text=True).stdout


async def assert_the_readme_runs(dev: dict[str, Any], customer: dict[str, str], port: int, home: Path) -> None:
    """Run the session with curl and the commands that show what happened, as a reader pastes them."""
    order, use = blocks_of_the_readme("A session with curl", port, home)
    said = await asyncio.to_thread(bash, order)
    ordered = f"{dev['url']}/v1/instances/{json.loads(said.splitlines()[0])['instance_id']}"
    await until_status(ordered, customer, "running")
    said = await asyncio.to_thread(bash, f"{order}\n{use}")
    assert "[scripted] You said: My dog is called Bo" in said
    assert said.count("event: token\ndata: ") > 1
    assert "[scripted] Ahoy! You said: Hello" in said
    assert said.endswith('"status":"deleting"}\n')
    await until_status(ordered, customer, "deleted")
    (show,) = blocks_of_the_readme("What happened", port, home)
    said = await asyncio.to_thread(bash, show)
    assert "instance_deleted" in said
    assert "\n0 findings in " in said
    assert said.endswith("0 found\n")


async def kill_everything(up: Up, home: Path) -> None:
    """kill -9 for all parts and both stores; wait until they are back."""
    killed = up.dev()
    for pid in [pid for pids in killed["pids"].values() for pid in pids]:
        os.kill(pid, signal.SIGKILL)
    for process in stores_of(home):
        with suppress(psutil.NoSuchProcess):  # Children of PostgreSQL end with it.
            process.kill()

    def back() -> bool:
        now = up.dev()["pids"]
        return all(len(now[kind]) == len(pids) and not {*now[kind]} & {*pids} for kind, pids in killed["pids"].items())

    await until(back)
    await until(lambda: is_ready(killed["url"]))


async def assert_same(first: dict[str, Any], second: dict[str, Any], instance: str, stopped_at: datetime) -> None:
    """The same stores, users, rights and servers, and the agents report again to another port."""
    for key in ("tenant_id", "api_key", "database_url", "redis_url", "cloudsim_url", "cloudsim_token"):
        assert second[key] == first[key]
    tokens = {
        200: first["customer"]["token"],
        403: second["other_customer"]["token"],
        404: second["other_tenant"]["admin"]["token"],
    }
    for status, token in tokens.items():
        assert await status_of(instance, Authorization=f"Bearer {token}") == status
    assert await status_of(instance, **{"X-Api-Key": first["api_key"]}) == 200
    cloudsim = {"Authorization": f"Bearer {second['cloudsim_token']}"}
    servers = (await asyncio.to_thread(sim_servers, second["cloudsim_url"], cloudsim))["servers"]
    assert [server["alive"] for server in servers] == [True]
    customer = {"Authorization": f"Bearer {first['customer']['token']}"}

    async def heard_again() -> bool:
        return await last_heartbeat(instance, customer) > stopped_at

    await until(heard_again)


async def assert_it_lives_without_logs(up: Up, home: Path, instance: str, customer: dict[str, str]) -> None:
    """Parts whose logs cannot be written serve and are restarted, and an agent whose log cannot be written goes on."""
    dev = up.dev()
    cloudsim = {"Authorization": f"Bearer {dev['cloudsim_token']}"}
    await until(lambda: sim_servers(dev["cloudsim_url"], cloudsim)["servers"][0]["alive"])
    (server,) = sim_servers(dev["cloudsim_url"], cloudsim)["servers"]
    _, hard = resource.prlimit(server["pid"], resource.RLIMIT_FSIZE)
    resource.prlimit(server["pid"], resource.RLIMIT_FSIZE, (0, hard))

    # The agent tries to reach the API meanwhile, and writes errors into its log.
    before = datetime.now(UTC)
    await kill_everything(up, home)
    resource.prlimit(server["pid"], resource.RLIMIT_FSIZE, (hard, hard))

    async def heard_again() -> bool:
        return await last_heartbeat(instance, customer) > before

    await until(heard_again)
    assert sim_servers(dev["cloudsim_url"], cloudsim)["servers"] == [server]


async def test_external_stores_replace_the_embedded_ones(
    up: Callable[..., Up], home: Path, database_url: str, redis_url: str
) -> None:
    one = up(free_port(), HYDRACORE_DATABASE_URL=database_url, HYDRACORE_REDIS_URL=redis_url)
    dev = await one.ready()

    assert (dev["database_url"], dev["redis_url"]) == (database_url, redis_url)
    assert not stores_of(home)
    assert await status_of(f"{dev['url']}/v1/instances", **{"X-Api-Key": dev["api_key"]}) == 200
    one.stop()


async def test_a_chat_interrupted_by_ctrl_c_ends_with_an_error_event(up: Callable[..., Up]) -> None:
    one = up(free_port())
    dev = await one.ready()
    customer = {"Authorization": f"Bearer {dev['customer']['token']}"}
    instance = await running_instance(dev["url"], customer)
    # So many words take longer than any stop.
    chat = {"message": "Count to 5000"}
    headers = customer | {"Accept": "text/event-stream"}

    async with (
        httpx.AsyncClient(timeout=READY_S_MAX, trust_env=False, verify=EMPTY_TRUST_STORE, headers=headers) as client,
        client.stream("POST", f"{instance}/chat", json=chat) as answer,
    ):
        lines = answer.aiter_lines()
        assert await anext(lines) == "event: token"
        stopping = asyncio.create_task(asyncio.to_thread(one.stop))
        rest = [line async for line in lines]
        await stopping

    assert "event: error" in rest
    assert '"code":"interrupted"' in rest[rest.index("event: error") + 1]


async def test_ctrl_c_during_the_start_leaves_no_data_directory(up: Callable[..., Up], home: Path) -> None:
    one = up(free_port())
    # PostgreSQL's data directory is being made, which takes longest.
    data = home / "postgres/data"
    await until(data.with_name("data.new").exists)

    output, troubles = one.stop()
    assert output.endswith("stopped\n")
    assert not troubles
    assert not data.exists(), "the stop does not wait until it is made"


async def last_heartbeat(instance: str, headers: dict[str, str]) -> datetime:
    async with httpx.AsyncClient(
        timeout=READY_S_MAX, trust_env=False, verify=EMPTY_TRUST_STORE, headers=headers
    ) as client:
        return datetime.fromisoformat((await client.get(f"{instance}/runtime")).json()["last_heartbeat"])


async def until_status(url: str, headers: dict[str, str], status: str) -> None:
    async with httpx.AsyncClient(
        timeout=READY_S_MAX, trust_env=False, verify=EMPTY_TRUST_STORE, headers=headers
    ) as client:

        async def reached() -> bool:
            return (await client.get(url)).json()["status"] == status

        await until(reached)


async def is_ready(url: str) -> bool:
    """All parts serve again; Valkey may come last."""
    try:
        async with httpx.AsyncClient(timeout=READY_S_MAX, trust_env=False, verify=EMPTY_TRUST_STORE) as client:
            return (await client.get(f"{url}/health/ready")).json()["status"] == "ready"
    except httpx.HTTPError:
        return False


async def counts_slowly(url: str) -> bool:
    """The scripted models are back, with the fault that they start with."""
    try:
        async with httpx.AsyncClient(timeout=READY_S_MAX, trust_env=False, verify=EMPTY_TRUST_STORE) as client:
            (fault,) = (await client.get(f"{url}/_sim/faults")).json()["faults"]
    except httpx.HTTPError:
        return False
    return (fault["kind"], fault["contains"], fault["times"]) == ("slow", "ount to ", None)


def sim_servers(url: str, headers: dict[str, str]) -> dict[str, Any]:
    return httpx.get(f"{url}/_sim/servers", headers=headers, trust_env=False, verify=EMPTY_TRUST_STORE).json()
