"""The API on a real server, in the test's own loop, on real services."""

import base64
import contextlib
import socket
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from events.keys import Keyring
from events.master_keys import MasterKeys
from events.store import EventStore
from hydracore import catalogue as catalogues
from hydracore.agent_client import AgentClient
from hydracore.api.app import Parts, operations
from hydracore.api.main import open_parts, server_config
from hydracore.api.operations import Operation
from hydracore.auth import Role, issue_token
from hydracore.http_server import running_server
from hydracore.settings import PACKAGED_CATALOGUE, Settings
from hydracore.transport import EMPTY_TRUST_STORE
from projections.queries import Queries
from tests.waiting import PATIENCE_S

JWT_SECRET = "a-secret-of-at-least-thirty-two-characters"
MASTER_KEY = bytes(range(32))
ENVIRON = {"HYDRACORE_CLOUDSIM_URL": "http://127.0.0.1:1", "HYDRACORE_CLOUDSIM_TOKEN": "x"}


class Api(NamedTuple):
    """A running API: its address, what it stands on, a client without credentials, and the tenant whose users call it."""

    url: str
    parts: Parts
    client: httpx.AsyncClient
    tenant: str = "acme"

    def token(
        self, tenant: str | None = None, user: str = "ann", role: Role = "customer", **extra: Any
    ) -> dict[str, str]:
        """The headers of a caller."""
        return bearer(tenant or self.tenant, user, role, **extra)


def bearer(tenant: str = "acme", user: str = "ann", role: Role = "customer", **extra: Any) -> dict[str, str]:
    """The headers of a caller. `extra`: their email, or when the token expires."""
    expires_at = extra.pop("expires_at", time.time() + 3600)
    made = issue_token(JWT_SECRET, tenant_id=tenant, user_id=user, role=role, expires_at=expires_at, **extra)
    return {"Authorization": f"Bearer {made}"}


@contextlib.asynccontextmanager
async def running_api(
    database_url: str, redis_url: str, *, catalogue: Path = PACKAGED_CATALOGUE, port: int = 0, **changes: Any
) -> AsyncGenerator[Api]:
    given = {"database_url": database_url, "redis_url": redis_url, "master_key": MASTER_KEY, "jwt_secret": JWT_SECRET}
    settings = Settings(**given | changes)
    async with open_parts(settings, catalogues.load(catalogue, ENVIRON)) as parts:
        door = listen("127.0.0.1", port)
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        async with (
            running_server(server_config(parts), door),
            httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, verify=EMPTY_TRUST_STORE) as client,
        ):
            yield Api(url, parts, client)


def listen(host: str, port: int = 0) -> socket.socket:
    """A listening socket whose connections send at once what they are given.

    asyncio sees to that by itself only where a socket says that it is TCP's. Without, an answer's second packet waits 40 ms
    for the first one's acknowledgement.
    """
    listener = socket.create_server((host, port))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def every_operation() -> list[Operation]:
    """What the API serves, without serving it: nothing that this stands on is ever opened."""
    settings = Settings(master_key=MASTER_KEY, jwt_secret=JWT_SECRET)
    pool: AsyncConnectionPool = AsyncConnectionPool(open=False)
    parts = Parts(
        settings=settings,
        catalogue=catalogues.load(PACKAGED_CATALOGUE, ENVIRON),
        pool=pool,
        store=EventStore(pool, inline=()),
        queries=Queries(pool),
        keyring=Keyring(pool, master_keys=MasterKeys(MASTER_KEY)),
        redis=Redis.from_url("redis://127.0.0.1:1"),
        agent_client=AgentClient(1),
    )
    return operations(parts)


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
