"""Servers of cloudsim with agents in them, for tests."""

from typing import Any

from tests.cloudsim_fixtures import CloudsimProcess, user_data
from tests.waiting import until


def create_server(cloudsim: CloudsimProcess, name: str = "hc-1", **changes: Any) -> int:
    """Order a server with an agent in it; its id."""
    order = {"name": name, "server_type": "sim1", "image": "debian-13", "location": "local1", "user_data": user_data()}
    return cloudsim.call("POST", "/v1/servers", {**order, **changes})["server"]["id"]


async def booted_agent_pid(cloudsim: CloudsimProcess, server_id: int) -> int:
    """The pid of its agent, once that has made its state folder: by then it is past its start."""
    await until(lambda: cloudsim.server(server_id)["alive"])
    state = cloudsim.home / "servers" / str(server_id) / "var/lib/hydracore-agent"
    await until(state.is_dir)
    return cloudsim.server(server_id)["pid"]
