"""A scripted agent that calls the control plane's agent endpoints over HTTP, as the program on a VPS does."""

import json
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from events import commands as c
from events.record import Origin
from hydracore import tokens
from tests.api_server import MASTER_KEY, Api, b64

NOW_MS = 1_800_000_000_000


async def execute(api: Api, instance_id: UUID, command: c.AnyCommand) -> None:
    origin = Origin(actor="worker", command_id=uuid4(), correlation_id=uuid4())
    await api.parts.store.execute(instance_id, command, origin)


def address_of(instance_id: UUID) -> str:
    """Of its server; no two have the same."""
    second, third, fourth = instance_id.bytes[:3]
    return f"127.{64 + second % 64}.{third}.{1 + fourth % 254}"


async def plan_server(api: Api, instance_id: UUID, *, attempt: int = 1, expires_ms: int = 2 * NOW_MS) -> str:
    """Intend a server, as a worker does, and return the enrol token that its user_data would hold."""
    token = tokens.enrol_token(MASTER_KEY, instance_id, attempt, "nonce")
    command = c.PlanServer(
        at_ms=NOW_MS,
        attempt=attempt,
        provider="cloudsim",
        server_type="sim1",
        location="local1",
        image="debian-13",
        hostname=f"hc-{instance_id.hex[:8]}",
        vpn_ip=address_of(instance_id),
        server_name=f"hc-{instance_id}",
        enrol_nonce="nonce",
        enrol_token_hash=tokens.hash_token(token).hex(),
        enrol_expires_ms=expires_ms,
        deadline_ms=2 * NOW_MS,
    )
    await execute(api, instance_id, command)
    return token


class Agent:
    """A well-behaved agent, to be made to misbehave."""

    def __init__(self, api: Api, instance_id: UUID, token: str, *, attempt: int = 1) -> None:
        self.client, self.instance_id, self.token, self.attempt = api.client, instance_id, token, attempt
        self.boot_id = uuid4()
        self.signing = Ed25519PrivateKey.generate()
        self.keys = {
            "signing": b64(self.signing.public_key().public_bytes_raw()),
            "vpn": b64(X25519PrivateKey.generate().public_key().public_bytes_raw()),
        }
        self.key = ""

    async def enroll(self, **changes: Any) -> httpx.Response:
        body = {
            "instance_id": str(self.instance_id),
            "attempt": self.attempt,
            "token": self.token,
            "boot_id": str(self.boot_id),
            "public_keys": self.keys,
        }
        return await self.client.post("/v1/agent/enroll", json=body | changes)

    async def secrets(self, *, sign_with: Ed25519PrivateKey | None = None, **changes: Any) -> httpx.Response:
        body = {"instance_id": str(self.instance_id), "attempt": self.attempt, "boot_id": str(self.boot_id)}
        raw = json.dumps(body | changes).encode()
        signature = b64((sign_with or self.signing).sign(raw))
        return await self.client.post("/v1/agent/secrets", content=raw, headers={"X-Agent-Signature": signature})

    async def acknowledge(self, key_id: str) -> httpx.Response:
        return await self._post("secrets/ack", {"boot_id": str(self.boot_id), "key_id": key_id})

    async def callback(self, seq: int, stage: str = "booted", **changes: Any) -> httpx.Response:
        body = {"boot_id": str(self.boot_id), "seq": seq, "stage": stage, "level": "info", "message": "hello"}
        return await self._post("callback", body | changes)

    async def heartbeat(self, **changes: Any) -> httpx.Response:
        body = {
            "boot_id": str(self.boot_id),
            "uptime_seconds": 5,
            "active_connections": 2,
            "versions": {"agent": "1", "openclaw": None, "node": "22"},
            "skills_loaded": ["notes"],
            "config_version": 1,
            "error": None,
        }
        return await self._post("heartbeat", body | changes)

    async def config(self) -> httpx.Response:
        return await self._post("config", {"boot_id": str(self.boot_id), "config_version": 1})

    async def usage(self, ledger_id: UUID, seq: int) -> httpx.Response:
        spent = {"at_ms": NOW_MS, "model": "m", "prompt_tokens": 1, "completion_tokens": 1, "cost_usd": "0.1"}
        batch = {"ledger_id": str(ledger_id), "seq": seq, "entries": [{**spent, "channel": "api"}]}
        return await self._post("usage", {"boot_id": str(self.boot_id), **batch})

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self.client.post(f"/v1/agent/{path}", json=body, headers={"Authorization": f"Bearer {self.key}"})

    async def get_ready(self) -> "Agent":
        """Enrol, and have the secrets acknowledged."""
        assert (await self.enroll()).status_code == 200
        secrets = (await self.secrets()).json()
        self.key = secrets["agent_key"]
        assert (await self.acknowledge(secrets["key_id"])).status_code == 200
        return self


async def new_instance(api: Api) -> UUID:
    body = {"region_id": "local", "tier_id": "starter", "agent_name": "Ada"}
    answer = await api.client.post("/v1/instances", json=body, headers=api.token())
    return UUID(answer.json()["instance_id"])


@pytest_asyncio.fixture(loop_scope="module", name="agent")
async def agent_fixture(api: Api) -> Agent:
    instance_id = await new_instance(api)
    return Agent(api, instance_id, await plan_server(api, instance_id))


async def stream_version(api: Api, agent: Agent) -> int:
    state = await api.parts.store.load(agent.instance_id)
    assert state is not None
    return state.version
