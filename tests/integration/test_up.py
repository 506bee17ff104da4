"""`hydracore up` as a user runs it: one process in a terminal, everything behind it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from hydracore.embedded.ports import free_port
from tests.services import open_folder
from tests.waiting import until

REPOSITORY = Path(__file__).parents[2]
#: The promises of `up`, with room for a busy machine in the first.
READY_S_MAX = 40.0
STOP_S_MAX = 10.0

KEYS = {
    *("url", "tenant_id", "admin", "customer", "other_customer", "other_tenant", "api_key"),
    *("database_url", "redis_url", "cloudsim_url", "cloudsim_token", "modelsim_url", "pids"),
}


class Up:
    """One `hydracore up` on `home`."""

    def __init__(self, home: Path, port: int, *options: str, **settings: str) -> None:
        self.home = home
        self.dev_file = home / "dev.json"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hydracore", "up", "--home", str(home), "--port", str(port), *options],
            cwd=REPOSITORY,
            env={name: value for name, value in os.environ.items() if not name.startswith("HYDRACORE_")} | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    async def ready(self) -> dict[str, Any]:
        await until(lambda: self.dev_file.exists() or self.process.poll() is not None, seconds_max=READY_S_MAX)
        assert self.process.poll() is None, self.process.communicate()
        return self.dev()

    def dev(self) -> dict[str, Any]:
        return json.loads(self.dev_file.read_text())

    def stop(self, number: int = signal.SIGINT) -> tuple[str, str]:
        """Send the signal; what it printed on both streams. Fails where the stop takes too long or is none."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        began_s = time.monotonic()
        # To its whole group, as a terminal sends Ctrl-C.
        os.killpg(self.process.pid, number)
        output = self.process.communicate(timeout=READY_S_MAX)
        assert time.monotonic() - began_s < STOP_S_MAX
        assert self.process.returncode == 0, output
        assert not [child for child in children if lives(child)]
        assert not processes_of(self.home)
        assert not self.dev_file.exists()
        return output


@pytest.fixture
def home() -> Generator[Path]:
    """A home that does not exist yet, in a directory that every account can pass through."""
    with open_folder() as folder:
        yield folder / "home"


@pytest.fixture
def up(home: Path) -> Generator[Callable[..., Up]]:
    """Starts `up` on the test's home; what a failed test leaves running is stopped."""
    started: list[Up] = []

    def start(port: int, *options: str, **settings: str) -> Up:
        started.append(Up(home, port, *options, **settings))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.stop()
        elif each.process.stdout and not each.process.stdout.closed:
            each.process.communicate()


def processes_of(home: Path) -> list[psutil.Process]:
    """Every living process whose command line names the home: the stores, cloudsim and its agents. `info` has its name."""
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if str(home) in " ".join(process.info["cmdline"] or ()) and lives(process)
    ]


def stores_of(home: Path) -> list[psutil.Process]:
    """PostgreSQL and Valkey, with their children."""
    return [process for process in processes_of(home) if process.info["name"] in {"postgres", "valkey-server"}]


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def alive(pids: dict[str, list[int]]) -> list[int]:
    return [pid for group in pids.values() for pid in group if psutil.pid_exists(pid)]


async def status_of(url: str, **headers: str) -> int:
    async with httpx.AsyncClient(timeout=READY_S_MAX, trust_env=False) as client:
        return (await client.get(url, headers=headers)).status_code


@pytest.mark.timeout(300)
async def test_everything_starts_survives_kills_stops_and_comes_back_with_the_same_data(
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
    told = {
        line.partition(" has ended (signal SIGKILL) and is started again; see ")[0] for line in troubles.splitlines()
    }
    assert told >= {"api", "relay", "worker-1", "worker-2", "cloudsim", "modelsim"}
    assert output.endswith("stopping ...\nstopped\n")
    assert f"HydraCore is up at {first['url']}" in output
    assert output.count("curl -s") == 7
    assert not alive(first["pids"])

    again = up(port, HYDRACORE_MODEL_BASE_URL="https://models.example/v1")
    second = await again.ready()
    assert (second["modelsim_url"], second["pids"]["modelsim"]) == (None, [])
    await assert_same(first, second, instance)

    refused = up(free_port())
    _, complaint = await asyncio.to_thread(refused.process.communicate)
    assert refused.process.returncode == 2
    assert complaint == f"hydracore: {home} is in use by another `hydracore up` (pid {again.process.pid})\n"

    again.process.kill()
    await asyncio.to_thread(again.process.communicate)
    assert alive(second["pids"]), "what a killed one leaves must not be in the way of the next"
    last = up(port)
    await until(lambda: not alive(second["pids"]))
    assert (await last.ready())["database_url"] == first["database_url"]
    assert await status_of(instance, **customer) == 200
    last.stop(signal.SIGTERM)


async def assert_complete(dev: dict[str, Any]) -> None:
    """Everything there is to know is there, and everything runs."""
    assert set(dev) == KEYS
    running = {"api": 1, "relay": 1, "worker": 2, "cloudsim": 1, "modelsim": 1}
    assert {kind: len(pids) for kind, pids in dev["pids"].items()} == running
    assert await status_of(f"{dev['modelsim_url']}/v1/models") == 200


async def running_instance(url: str, headers: dict[str, str]) -> str:
    """The URL of a new instance, once it runs."""
    body = {"region_id": "local", "tier_id": "starter", "idempotency_key": "kept"}
    async with httpx.AsyncClient(timeout=READY_S_MAX, trust_env=False) as client:
        created = await client.post(f"{url}/v1/instances", json=body, headers=headers)
    instance = f"{url}/v1/instances/{created.json()['instance_id']}"
    await until_status(instance, headers, "running")
    return instance


def blocks_of_the_readme(section: str, port: int, home: Path) -> list[str]:
    """What a reader pastes."""
    text = (REPOSITORY / "README.md").read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    program = f"{sys.executable} -m hydracore"
    here = (
        text.replace(":8080/", f":{port}/").replace(".hydracore/", f"{home}/").replace(".venv/bin/hydracore", program)
    )
    return here.split("```\n")[1::2]


def bash(script: str) -> str:
    return subprocess.run(["bash", "-euc", script], check=True, stdout=subprocess.PIPE, text=True).stdout


async def assert_the_readme_runs(dev: dict[str, Any], customer: dict[str, str], port: int, home: Path) -> None:
    """Its session with curl, and how it shows what happened, as a reader pastes it."""
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
        with suppress(psutil.NoSuchProcess):  # A child of PostgreSQL's goes with it.
            process.kill()

    def back() -> bool:
        now = up.dev()["pids"]
        return all(len(now[kind]) == len(pids) and not {*now[kind]} & {*pids} for kind, pids in killed["pids"].items())

    await until(back)
    await until(lambda: is_ready(killed["url"]))


async def assert_same(first: dict[str, Any], second: dict[str, Any], instance: str) -> None:
    """The same addresses, the same people with the same rights, the same servers, and their agents at work again."""
    for key in ("url", "tenant_id", "api_key", "database_url", "redis_url", "cloudsim_url", "cloudsim_token"):
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


async def test_stores_of_ones_own_replace_the_embedded_ones(
    up: Callable[..., Up], home: Path, database_url: str, redis_url: str
) -> None:
    one = up(free_port(), HYDRACORE_DATABASE_URL=database_url, HYDRACORE_REDIS_URL=redis_url)
    dev = await one.ready()

    assert (dev["database_url"], dev["redis_url"]) == (database_url, redis_url)
    assert not stores_of(home)
    assert await status_of(f"{dev['url']}/v1/instances", **{"X-Api-Key": dev["api_key"]}) == 200
    one.stop()


async def test_a_taken_port_is_refused(up: Callable[..., Up], home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = up(port)
        _, complaint = await asyncio.to_thread(refused.process.communicate)

    assert refused.process.returncode == 2
    assert complaint.startswith(f"hydracore: port {port} on 127.0.0.1 is already in use")


async def test_stores_of_ones_own_that_do_not_answer_are_named(
    up: Callable[..., Up], home: Path, database_url: str
) -> None:
    nowhere = f"127.0.0.1:{free_port()}/0"
    without_redis = up(
        free_port(), HYDRACORE_DATABASE_URL=database_url, HYDRACORE_REDIS_URL=f"redis://:secret@{nowhere}"
    )
    _, complaint = await asyncio.to_thread(without_redis.process.communicate)

    assert without_redis.process.returncode == 1
    assert complaint.startswith("hydracore: no Valkey or Redis answers at HYDRACORE_REDIS_URL")
    assert "secret" not in complaint
    assert not processes_of(home)


async def test_a_role_that_the_database_does_not_have_is_named(
    up: Callable[..., Up], home: Path, database_url: str, redis_url: str
) -> None:
    stores = {"HYDRACORE_DATABASE_URL": database_url, "HYDRACORE_REDIS_URL": redis_url}
    refused = up(free_port(), HYDRACORE_DATABASE_ROLE="nobody_knows", **stores)
    _, complaint = await asyncio.to_thread(refused.process.communicate)

    assert refused.process.returncode == 1
    assert complaint.startswith("hydracore: the database cannot be used: ")
    assert (len(complaint.splitlines()), "nobody_knows" in complaint) == (1, True)


async def test_a_catalogue_that_is_none_is_refused_before_anything_is_started(
    up: Callable[..., Up], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "catalogue.toml").write_text("regions")
    refused = up(free_port(), HYDRACORE_CATALOGUE=str(tmp_path / "catalogue.toml"))
    _, complaint = await asyncio.to_thread(refused.process.communicate)

    assert refused.process.returncode == 2
    assert complaint.startswith(f"hydracore: {tmp_path / 'catalogue.toml'}: ")
    assert len(complaint.splitlines()) == 1
    assert not list((home / "logs").iterdir())


async def test_ctrl_c_in_the_middle_of_the_start_leaves_nothing(up: Callable[..., Up], home: Path) -> None:
    one = up(free_port())
    # PostgreSQL's own data directory is being made, which takes longest.
    data = home / "postgres/data"
    await until(data.with_name("data.new").exists)

    output, troubles = one.stop()
    assert output.endswith("stopped\n")
    assert not troubles
    assert not data.exists(), "nobody may wait until it is made"


async def until_status(url: str, headers: dict[str, str], status: str) -> None:
    async with httpx.AsyncClient(timeout=READY_S_MAX, trust_env=False, headers=headers) as client:

        async def reached() -> bool:
            return (await client.get(url)).json()["status"] == status

        await until(reached)


async def is_ready(url: str) -> bool:
    """All parts serve again; Valkey may come last."""
    try:
        async with httpx.AsyncClient(timeout=READY_S_MAX, trust_env=False) as client:
            return (await client.get(f"{url}/health/ready")).json()["status"] == "ready"
    except httpx.HTTPError:
        return False


async def counts_slowly(url: str) -> bool:
    """The scripted models are back, with the order that they start with."""
    try:
        async with httpx.AsyncClient(timeout=READY_S_MAX, trust_env=False) as client:
            (fault,) = (await client.get(f"{url}/_sim/faults")).json()["faults"]
    except httpx.HTTPError:
        return False
    return (fault["kind"], fault["contains"], fault["times"]) == ("slow", "ount to ", None)


def sim_servers(url: str, headers: dict[str, str]) -> dict[str, Any]:
    return httpx.get(f"{url}/_sim/servers", headers=headers, trust_env=False).json()
