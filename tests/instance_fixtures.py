"""A running instance whose agent is scripted; fixtures, to be imported by name. The instance runs in the log only."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from secrets import randbelow
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest_asyncio

from events import commands as c
from events.record import Origin, Outcome
from events.state import Instance
from hydracore import tokens
from tests.api_server import MASTER_KEY, Api, b64, running_api
from tests.lifecycle import (
    BOOT,
    acknowledge,
    created,
    discarded,
    enrol,
    failed,
    gave_up,
    issue,
    mark_ready,
    plan,
    vanished,
)
from tests.services import Services
from tests.tiny_agent import TinyAgent, serving

KEY_ID = UUID(int=0xC1)

#: A heartbeat of its agent.
HEARTBEAT: dict[str, Any] = {
    "boot_id": str(BOOT),
    "uptime_seconds": 5,
    "active_connections": 0,
    "versions": {"agent": "1"},
    "skills_loaded": [],
    "config_version": 1,
    "error": None,
}

#: Where the addresses of this process begin, which shares the machine with others.
_NETWORK, _FIRST = 64 + randbelow(64), randbelow(256 * 254)
_hosts = itertools.count(_FIRST)


def free_host() -> str:
    """An address of its own for each agent, as each VPS has one."""
    high, low = divmod(next(_hosts) % (256 * 254), 254)
    return f"127.{_NETWORK}.{high}.{1 + low}"


async def execute_commands(api: Api, instance_id: UUID, *commands: c.AnyCommand) -> Outcome:
    """Execute commands, as workers and agents do; the last one's outcome."""
    outcomes = [
        await api.parts.store.execute(
            instance_id, command, Origin(actor="worker", command_id=uuid4(), correlation_id=uuid4())
        )
        for command in commands
    ]
    return outcomes[-1]


async def request_instance(api: Api, *, user: str = "ann", **fields: Any) -> UUID:
    body = {"region_id": "local", "tier_id": "starter", **fields}
    answer = await api.client.post("/v1/instances", json=body, headers=api.token(user=user))
    assert answer.status_code == 202, answer.text
    return UUID(answer.json()["instance_id"])


async def provision(api: Api, instance_id: UUID, *, host: str | None = None) -> None:
    """Its server exists and its agent has enrolled with a key in force."""
    key = tokens.agent_key(MASTER_KEY, instance_id, KEY_ID)
    server = f"{instance_id.int % 10**9}"
    await execute_commands(
        api,
        instance_id,
        plan(vpn_ip=host or free_host(), hostname=f"hc-{instance_id.hex[:8]}", server_name=f"hc-{instance_id}"),
        created(server_id=server),
        enrol(signing_key=b64(bytes(32))),
        issue(KEY_ID, key_hash=tokens.hash_token(key).hex()),
        acknowledge(KEY_ID),
    )


async def make_failed(api: Api, instance_id: UUID) -> None:
    await execute_commands(
        api,
        instance_id,
        plan(vpn_ip=free_host(), hostname=f"hc-{instance_id.hex[:8]}"),
        failed(retryable=False, code="unauthorized", nothing_made=True),
        discarded(),
        gave_up("unauthorized"),
    )


async def make_lost(api: Api, instance_id: UUID) -> None:
    await provision(api, instance_id)
    await execute_commands(api, instance_id, mark_ready(), vanished(server_id=f"{instance_id.int % 10**9}"))


class RunningInstance(NamedTuple):
    """An instance of ann's that runs. `ask` is ann's unless `headers` say otherwise."""

    api: Api
    instance_id: UUID
    agent: TinyAgent

    async def ask(self, method: str, path: str, body: Any = None, **kwargs: Any) -> httpx.Response:
        headers = {**self.api.token(), **kwargs.pop("headers", {})}
        return await self.api.client.request(
            method, f"/v1/instances/{self.instance_id}{path}", json=body, headers=headers, **kwargs
        )

    def stream(self) -> AbstractAsyncContextManager[httpx.Response]:
        """A streamed chat of ann's, to be read as it comes."""
        url, headers = f"/v1/instances/{self.instance_id}/chat", {**self.api.token(), "Accept": "text/event-stream"}
        return self.api.client.stream("POST", url, json={"message": "Hello"}, headers=headers)

    async def state(self) -> Instance:
        state = await self.api.parts.store.load(self.instance_id)
        assert state is not None
        return state

    async def version(self) -> int:
        return (await self.state()).version

    async def agent_post(self, path: str, body: Any, *, key_id: UUID = KEY_ID) -> httpx.Response:
        """A request of the agent's to the control plane."""
        key = tokens.agent_key(MASTER_KEY, self.instance_id, key_id)
        return await self.api.client.post(f"/v1/agent/{path}", json=body, headers={"Authorization": f"Bearer {key}"})


@asynccontextmanager
async def running_instance(api: Api, *, reachable: bool = True, **fields: Any) -> AsyncGenerator[RunningInstance]:
    """`reachable`: whether an agent answers at its address."""
    instance_id = await request_instance(api, **fields)
    host = free_host()
    await provision(api, instance_id, host=host)
    await execute_commands(api, instance_id, mark_ready())
    agent = TinyAgent(instance_id)
    agent.token = tokens.control_token(MASTER_KEY, instance_id, KEY_ID)
    async with AsyncExitStack() as stack:
        if reachable:
            await stack.enter_async_context(serving(agent, host))
        yield RunningInstance(api, instance_id, agent)


# One API for all tests of a module, each of which uses an instance of its own. The loop is
# the module's, too: `pytestmark = pytest.mark.asyncio(loop_scope="module")`.


@asynccontextmanager
async def shared_api(services: Services, **settings: Any) -> AsyncGenerator[Api]:
    """An API on a database of its own for many tests, and therefore without a rate limit."""
    url = services.create_database(name := f"shared_{uuid4().hex[:12]}")
    try:
        async with running_api(url, services.redis_url.format(0), rate_limit_per_minute=0, **settings) as api:
            yield api
    finally:
        services.drop_database(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="api")
async def shared_api_fixture(services: Services) -> AsyncGenerator[Api]:
    async with shared_api(services) as api:
        yield api


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="module_api")
async def module_api_fixture(services: Services) -> AsyncGenerator[Api]:
    async with shared_api(services) as api:
        yield api


@pytest_asyncio.fixture(loop_scope="module", name="api")
async def tenant_api_fixture(module_api: Api) -> Api:
    """The module's API, called by users of a new tenant that has no instances yet."""
    return module_api._replace(tenant=f"acme-{uuid4().hex[:8]}")


@pytest_asyncio.fixture(loop_scope="module", name="owner_conn")
async def shared_owner_conn_fixture(api: Api) -> AsyncGenerator[psycopg.AsyncConnection]:
    """A connection of the owner's (who may do everything) to the API's database, in autocommit mode."""
    async with await psycopg.AsyncConnection.connect(api.parts.settings.database_url, autocommit=True) as connection:
        yield connection


@pytest_asyncio.fixture(loop_scope="module", name="instance")
async def shared_instance_fixture(api: Api) -> AsyncGenerator[RunningInstance]:
    async with running_instance(api) as instance:
        yield instance


@pytest_asyncio.fixture(loop_scope="module", name="unreachable")
async def shared_unreachable_fixture(api: Api) -> AsyncGenerator[RunningInstance]:
    async with running_instance(api, reachable=False) as instance:
        yield instance


async def events_of(owner_conn: psycopg.AsyncConnection, instance_id: UUID, type_: str) -> list[dict[str, Any]]:
    """The payloads of the instance's events of a type."""
    rows = await owner_conn.execute(
        "SELECT payload FROM event WHERE stream_id = %s AND type = %s ORDER BY version", (instance_id, type_)
    )
    return [row[0] for row in await rows.fetchall()]
