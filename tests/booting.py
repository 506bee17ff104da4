"""Boots a real agent against an API that has no worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

from hydracore import tokens
from tests.agent_process import AgentProcess
from tests.api_server import MASTER_KEY, Api
from tests.instance_fixtures import execute_commands, free_host, request_instance
from tests.lifecycle import created, plan


async def boot_agent(api: Api, root: Path, **ordered: Any) -> tuple[UUID, AgentProcess]:
    """What a worker does, and then what cloud-init does."""
    instance_id = await request_instance(api, **ordered)
    enrol_token = tokens.enrol_token(MASTER_KEY, instance_id, 1, "nonce")
    intent = plan(
        vpn_ip=free_host(),
        hostname=f"hc-{instance_id.hex[:8]}",
        server_name=f"hc-{instance_id}",
        enrol_nonce="nonce",
        enrol_token_hash=tokens.hash_token(enrol_token).hex(),
        enrol_expires_ms=api.parts.now_ms() + 3_600_000,
    )
    await execute_commands(api, instance_id, intent, created(server_id=f"{instance_id.int % 10**9}"))
    agent = AgentProcess(root)
    content = {"control_plane_url": api.url, "instance_id": str(instance_id), "attempt": 1, "enrol_token": enrol_token}
    agent.write_boot_file(json.dumps(content))
    agent.start()
    return instance_id, agent
