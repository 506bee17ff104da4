"""cloudsim killed, stopped and started again, with real agent processes: at most one per server, and none left behind."""

import asyncio
import os
import signal
import sqlite3
from pathlib import Path

import httpx
import pytest

from tests.cloudsim_fixtures import CloudsimProcess
from tests.cloudsim_servers import booted_agent_pid, create_server
from tests.command import run_forked
from tests.waiting import until


async def test_after_a_kill_of_cloudsim_its_servers_are_the_same_and_their_agents_are_adopted(
    cloudsim: CloudsimProcess,
) -> None:
    ids = [create_server(cloudsim, f"hc-{number}", labels={"n": str(number)}) for number in range(3)]
    pids = [await booted_agent_pid(cloudsim, server_id) for server_id in ids]
    before = cloudsim.call("GET", "/v1/servers")["servers"]

    cloudsim.kill()
    await cloudsim.start()

    assert cloudsim.call("GET", "/v1/servers")["servers"] == before
    assert [cloudsim.server(server_id)["pid"] for server_id in ids] == pids
    assert sorted(agent.pid for agent in cloudsim.agents()) == sorted(pids)
    cloudsim.call("DELETE", f"/v1/servers/{ids[0]}")
    await until(lambda: cloudsim.agents(ids[0]) == [])


async def test_agents_that_died_while_cloudsim_was_down_are_booted_again(cloudsim: CloudsimProcess) -> None:
    dead, living = create_server(cloudsim, "hc-1"), create_server(cloudsim, "hc-2")
    dead_pid, living_pid = await booted_agent_pid(cloudsim, dead), await booted_agent_pid(cloudsim, living)

    cloudsim.kill()
    os.kill(dead_pid, signal.SIGKILL)
    await cloudsim.start()

    assert await booted_agent_pid(cloudsim, dead) != dead_pid
    assert await booted_agent_pid(cloudsim, living) == living_pid
    assert len(cloudsim.agents()) == 2


async def test_an_agent_whose_pid_was_not_stored_is_found(cloudsim: CloudsimProcess) -> None:
    server_id = create_server(cloudsim)
    pid = await booted_agent_pid(cloudsim, server_id)

    cloudsim.kill()
    forget_pids(cloudsim.home)
    await cloudsim.start()

    await until(lambda: cloudsim.server(server_id)["alive"])
    assert [agent.pid for agent in cloudsim.agents()] == [pid]
    assert cloudsim.server(server_id)["pid"] == pid


def forget_pids(home: Path) -> None:
    """Leave the database as a kill of cloudsim does between the start of an agent and the storing of its pid."""
    with sqlite3.connect(home / "cloudsim.sqlite") as database:
        database.execute("UPDATE server SET agent_pid = NULL, agent_started = NULL")
    database.close()


async def test_kills_during_creates_and_deletes_lose_and_double_no_server(
    cloudsim: CloudsimProcess,
) -> None:
    promised: dict[int, bool] = {}
    for turn in range(4):
        work = asyncio.create_task(asyncio.to_thread(create_and_delete, cloudsim, turn, promised))
        await asyncio.wait([work], timeout=0.03 * (turn + 1))
        cloudsim.kill()
        await asyncio.wait([work])
        await cloudsim.start()

    def settled() -> bool:
        servers = cloudsim.servers()
        return all(server["status"] == "running" and server["alive"] for server in servers)

    await until(settled)
    present = {server["id"] for server in cloudsim.servers()}
    assert {server_id for server_id, lives in promised.items() if lives} <= present
    assert not {server_id for server_id, lives in promised.items() if not lives} & present
    assert sorted(agent.pid for agent in cloudsim.agents()) == sorted(s["pid"] for s in cloudsim.servers())


def create_and_delete(cloudsim: CloudsimProcess, turn: int, promised: dict[int, bool]) -> None:
    """Create servers and delete every second one until cloudsim dies. `promised` is what it answered: which exist."""
    try:
        for number in range(100):
            server_id = create_server(cloudsim, f"hc-{turn}-{number}")
            promised[server_id] = True
            if number % 2:
                while cloudsim.call("GET", f"/v1/servers/{server_id}")["server"]["locked"]:
                    pass  # Its creation is still at work.
                promised.pop(server_id)
                cloudsim.call("DELETE", f"/v1/servers/{server_id}")
                promised[server_id] = False
    except httpx.TransportError:
        return


async def test_a_server_that_was_being_deleted_is_deleted_by_the_next_cloudsim(cloudsim: CloudsimProcess) -> None:
    server_id = create_server(cloudsim)
    await booted_agent_pid(cloudsim, server_id)
    cloudsim.terminate()
    await cloudsim.start(action_delay_ms=60_000)
    deleting = cloudsim.call("DELETE", f"/v1/servers/{server_id}")["action"]

    cloudsim.kill()
    await cloudsim.start(action_delay_ms=0)

    await until(lambda: cloudsim.servers() == [])
    assert cloudsim.agents() == []
    assert cloudsim.call("GET", f"/v1/actions/{deleting['id']}")["action"]["status"] == "success"


async def test_a_server_whose_deletion_fails_is_deleted_once_that_is_possible(cloudsim: CloudsimProcess) -> None:
    server_id = create_server(cloudsim, user_data="")
    await until(lambda: cloudsim.server(server_id)["status"] == "running")
    lock = cloudsim.home / "locks" / f"{server_id}.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()

    cloudsim.call("DELETE", f"/v1/servers/{server_id}")
    await until(lambda: "server_stuck" in cloudsim.log.read_text())
    assert cloudsim.call("GET", f"/v1/servers/{server_id}")["server"]["status"] == "deleting"
    lock.rmdir()

    await until(lambda: cloudsim.servers() == [])


async def test_a_server_is_listed_as_long_as_any_of_its_disk_remains(cloudsim: CloudsimProcess) -> None:
    server_id = create_server(cloudsim, user_data="")
    await until(lambda: cloudsim.server(server_id)["status"] == "running")
    disk = cloudsim.home / "servers" / str(server_id)
    await until(disk.is_dir)
    # A file in place of a directory cannot be removed like a disk.
    disk.rmdir()
    disk.touch()

    cloudsim.call("DELETE", f"/v1/servers/{server_id}")
    await until(lambda: "server_stuck" in cloudsim.log.read_text() or cloudsim.servers() == [])
    assert cloudsim.call("GET", f"/v1/servers/{server_id}")["server"]["status"] == "deleting"
    disk.unlink()

    await until(lambda: cloudsim.servers() == [])


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
async def test_a_stopped_cloudsim_leaves_its_agents_running(cloudsim: CloudsimProcess, signal_name: str) -> None:
    server_id = create_server(cloudsim)
    pid = await booted_agent_pid(cloudsim, server_id)

    assert cloudsim.end(signal.Signals[signal_name]) == 0

    assert [agent.pid for agent in cloudsim.agents()] == [pid]


async def test_cloudsim_stops_its_agents_at_its_end_with_stop_servers_on_exit(cloudsim: CloudsimProcess) -> None:
    cloudsim.terminate()
    await cloudsim.start(stop_servers_on_exit=True)
    await booted_agent_pid(cloudsim, create_server(cloudsim))

    assert cloudsim.terminate() == 0

    assert cloudsim.agents() == []


async def test_a_shutdown_stops_the_agents_and_the_next_start_boots_them(cloudsim: CloudsimProcess) -> None:
    ids = [create_server(cloudsim, f"hc-{number}") for number in range(3)]
    pids = {await booted_agent_pid(cloudsim, server_id) for server_id in ids}

    assert cloudsim.call("POST", "/_sim/shutdown") == {"stopped": 3}
    assert cloudsim.agents() == []
    late = create_server(cloudsim, "late")
    await until(lambda: cloudsim.server(late)["status"] == "running")
    assert cloudsim.agents() == []
    cloudsim.terminate()
    await cloudsim.start()

    assert not pids & {await booted_agent_pid(cloudsim, server_id) for server_id in [*ids, late]}


async def test_inline_agents_run_and_end_with_cloudsim(cloudsim: CloudsimProcess) -> None:
    cloudsim.terminate()
    await cloudsim.start(boot="inline")
    server_id = create_server(cloudsim)
    await until(lambda: cloudsim.server(server_id)["alive"])
    assert cloudsim.server(server_id)["pid"] is None
    assert cloudsim.agents() == []

    assert cloudsim.call("POST", f"/_sim/servers/{server_id}/kill") == {"killed": True}
    assert cloudsim.server(server_id)["alive"] is False
    cloudsim.kill()
    await cloudsim.start(boot="inline")

    await until(lambda: cloudsim.server(server_id)["alive"])
    cloudsim.call("DELETE", f"/v1/servers/{server_id}")
    await until(lambda: cloudsim.servers() == [])


async def test_an_inline_cloudsim_replaces_agent_processes_of_an_earlier_one(cloudsim: CloudsimProcess) -> None:
    server_id = create_server(cloudsim)
    await booted_agent_pid(cloudsim, server_id)

    cloudsim.kill()
    await cloudsim.start(boot="inline")

    await until(lambda: cloudsim.agents() == [])
    await until(lambda: cloudsim.server(server_id)["alive"])
    assert cloudsim.server(server_id)["pid"] is None


async def test_a_request_that_is_held_does_not_keep_cloudsim_from_ending(cloudsim: CloudsimProcess) -> None:
    cloudsim.fault("create_server", "hold_before")
    ordering = asyncio.create_task(asyncio.to_thread(create_server, cloudsim))
    await until(cloudsim.held)

    assert cloudsim.terminate() == 0
    await asyncio.wait([ordering])
    await cloudsim.start()

    assert ordering.exception() is not None
    assert cloudsim.servers() == []


async def test_a_second_cloudsim_on_the_same_home_is_refused(cloudsim: CloudsimProcess) -> None:
    second = CloudsimProcess(cloudsim.home)

    with pytest.raises(AssertionError, match="cloudsim: another cloudsim is running on"):
        await second.start()

    second.close()


async def test_a_second_cloudsim_on_the_same_port_is_refused(cloudsim: CloudsimProcess, tmp_path: Path) -> None:
    second = CloudsimProcess(tmp_path / "home")
    second.port = cloudsim.port

    with pytest.raises(AssertionError, match="cloudsim: cannot listen on"):
        await second.start()

    second.close()


@pytest.mark.parametrize("kind", ["a file", "a malformed store"])
def test_a_home_that_cloudsim_cannot_use_is_refused_with_one_line(kind: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    if kind == "a file":
        (tmp_path / "file").touch()
        home = tmp_path / "file" / "home"
    else:
        home.mkdir()
        (home / "cloudsim.sqlite").write_text("no database" * 100)

    done = run_forked("cloudsim", "--home", str(home), "--port", "0", env={"HYDRACORE_CLOUDSIM_TOKEN": "t" * 32})

    assert (done.status, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith(f"hydracore cloudsim: {home}")
