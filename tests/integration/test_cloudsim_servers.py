"""A server of cloudsim is a real agent process on a disk of its own. It boots, dies and vanishes as ordered."""

import os
import signal

import psutil

from hydracore.cloudsim.disk import AGENT_LOG
from hydracore.log_files import LOG_BYTES_MAX
from tests.cloudsim_fixtures import CloudsimProcess, stop_short
from tests.cloudsim_servers import booted_agent_pid, create_server
from tests.waiting import until


async def test_a_server_boots_its_agent_from_its_user_data(cloudsim: CloudsimProcess) -> None:
    server_id = create_server(cloudsim)

    pid = await booted_agent_pid(cloudsim, server_id)

    root = cloudsim.home / "servers" / str(server_id)
    assert (root / "etc/hydracore/agent.json").stat().st_mode & 0o777 == 0o600
    assert (root / "var/log/hydracore-agent.log").exists()
    agent = psutil.Process(pid)
    assert agent.cmdline()[-2:] == ["--root", str(root)]
    assert os.getsid(pid) == pid
    assert not any("HYDRACORE" in name for name in agent.environ())


async def test_a_large_agent_log_is_rotated_while_the_agent_runs(cloudsim: CloudsimProcess) -> None:
    server_id = create_server(cloudsim)
    pid = await booted_agent_pid(cloudsim, server_id)
    log = cloudsim.home / "servers" / str(server_id) / AGENT_LOG

    os.truncate(log, LOG_BYTES_MAX + 1)
    await until(lambda: log.stat().st_size <= LOG_BYTES_MAX)

    assert log.with_name(f"{log.name}.old").stat().st_size > LOG_BYTES_MAX
    assert [agent.pid for agent in cloudsim.agents(server_id)] == [pid]


async def test_a_delete_ends_the_agent_and_leaves_nothing(cloudsim: CloudsimProcess) -> None:
    server_id = create_server(cloudsim)
    await booted_agent_pid(cloudsim, server_id)

    cloudsim.call("DELETE", f"/v1/servers/{server_id}")
    await until(lambda: not cloudsim.servers())

    assert cloudsim.agents(server_id) == []
    assert not (cloudsim.home / "servers" / str(server_id)).exists()
    assert not list((cloudsim.home / "locks").iterdir())


async def test_a_frozen_agent_is_killed_when_its_server_is_deleted(cloudsim: CloudsimProcess) -> None:
    server_id = create_server(cloudsim)
    pid = await booted_agent_pid(cloudsim, server_id)
    await stop_short(pid)

    cloudsim.call("DELETE", f"/v1/servers/{server_id}")
    await until(lambda: not cloudsim.servers())

    assert cloudsim.agents(server_id) == []


async def test_a_server_without_an_agent_in_its_user_data_runs_without_one(cloudsim: CloudsimProcess) -> None:
    data = ["", "#!/bin/sh\necho hi", "#cloud-config\nruncmd: [ls]", '#cloud-config\n{"write_files": []}']

    ids = [create_server(cloudsim, f"hc-{number}", user_data=text) for number, text in enumerate(data)]

    await until(lambda: all(server["status"] == "running" for server in cloudsim.servers()))
    assert [server["id"] for server in cloudsim.servers() if not server["alive"]] == ids


async def test_user_data_cannot_write_files_outside_of_the_server_s_disk(cloudsim: CloudsimProcess) -> None:
    evil = '#cloud-config\n{"write_files": [{"path": "/../../evil", "content": "x"}]}'

    create_server(cloudsim, user_data=evil)

    await until(lambda: cloudsim.servers()[0]["status"] == "running")
    assert list(cloudsim.home.parent.rglob("evil")) == []


async def test_power_off_and_on_stops_and_boots_the_agent(cloudsim: CloudsimProcess) -> None:
    server_id = create_server(cloudsim)
    first = await booted_agent_pid(cloudsim, server_id)

    cloudsim.call("POST", f"/v1/servers/{server_id}/actions/poweroff")
    await until(lambda: cloudsim.server(server_id)["status"] == "off")
    assert cloudsim.agents(server_id) == []
    cloudsim.call("POST", f"/v1/servers/{server_id}/actions/poweron")

    assert await booted_agent_pid(cloudsim, server_id) != first


async def test_a_killed_agent_stays_dead_until_a_reset(cloudsim: CloudsimProcess) -> None:
    server_id = create_server(cloudsim)
    first = await booted_agent_pid(cloudsim, server_id)

    assert cloudsim.call("POST", f"/_sim/servers/{server_id}/kill") == {"killed": True}
    assert cloudsim.server(server_id)["alive"] is False
    assert cloudsim.server(server_id)["status"] == "running"
    assert cloudsim.call("POST", f"/_sim/servers/{server_id}/kill") == {"killed": False}

    cloudsim.call("POST", f"/v1/servers/{server_id}/actions/reset")
    assert await booted_agent_pid(cloudsim, server_id) != first


async def test_dead_agents_do_not_stay_as_zombies(cloudsim: CloudsimProcess) -> None:
    server_id = create_server(cloudsim)
    pid = await booted_agent_pid(cloudsim, server_id)

    os.kill(pid, signal.SIGKILL)

    await until(lambda: not psutil.pid_exists(pid))


async def test_a_server_with_a_dead_boot_runs_without_an_agent(cloudsim: CloudsimProcess) -> None:
    cloudsim.fault("create_server", "dead_boot", location="local2")

    dead = create_server(cloudsim, "hc-1", location="local2")
    living = create_server(cloudsim, "hc-2", location="local2")

    await booted_agent_pid(cloudsim, living)
    assert cloudsim.server(dead)["status"] == "running"
    assert cloudsim.agents(dead) == []


async def test_a_server_with_a_slow_boot_runs_before_its_agent_does(cloudsim: CloudsimProcess) -> None:
    cloudsim.fault("create_server", "slow_boot", delay_s=0.7)

    server_id = create_server(cloudsim)

    await until(lambda: cloudsim.server(server_id)["status"] == "running")
    assert cloudsim.server(server_id)["alive"] is False
    await booted_agent_pid(cloudsim, server_id)


async def test_a_vanished_server_is_gone_without_a_delete(cloudsim: CloudsimProcess) -> None:
    server_id = create_server(cloudsim)
    await booted_agent_pid(cloudsim, server_id)

    cloudsim.call("POST", f"/_sim/servers/{server_id}/vanish")

    assert cloudsim.servers() == []
    assert cloudsim.agents(server_id) == []
    assert cloudsim.call("GET", "/v1/servers")["servers"] == []
    past = cloudsim.call("GET", "/_sim/history")["servers"][-1]
    assert past["id"] == server_id
    assert past["created_at"] < past["deleted_at"]
