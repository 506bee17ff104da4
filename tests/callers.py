"""One running instance of the customer ann, and every kind of caller, for tests of all operations."""

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg

from hydracore import tokens
from hydracore.auth import create_api_key, issue_token
from tests.api_server import MASTER_KEY, Api, bearer, running_api
from tests.instance_fixtures import KEY_ID, RunningInstance, running_instance
from tests.services import Services

#: Credentials that are accepted for nothing that customers and staff may do.
UNAUTHENTICATED = ("nobody", "bad token", "expired token", "unknown API key", "agent")
#: Callers of another tenant, whose customer has the same name as the owner here.
OTHER_TENANT_STAFF = ("admin of another tenant", "API key of another tenant")
OTHER_TENANT_CUSTOMERS = ("customer of another tenant", "API key of another tenant for its customer")
OTHER_CUSTOMERS = ("another customer", "API key for another customer")
OWNERS = ("owner", "API key for the owner")
STAFF = ("admin", "platform", "API key")
ALL_CALLERS = (*UNAUTHENTICATED, *OTHER_TENANT_STAFF, *OTHER_TENANT_CUSTOMERS, *OTHER_CUSTOMERS, *OWNERS, *STAFF)


class Callers(NamedTuple):
    """`headers`: of every caller, by name."""

    api: Api
    instance: RunningInstance
    headers: dict[str, dict[str, str]]
    owner_conn: psycopg.AsyncConnection

    async def side_effects(self) -> tuple[int, ...]:
        """The number of rows and calls that a request may have caused: events, commands and reports in the database, and calls of the agent."""
        counted = await self.owner_conn.execute(
            "SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM command), (SELECT count(*) FROM heartbeat)"
        )
        row = await counted.fetchone()
        assert row is not None
        return (*row, len(self.instance.agent.calls))


@asynccontextmanager
async def open_callers(services: Services, **settings: Any) -> AsyncGenerator[Callers]:
    """The API on a database of its own. What it leaves in Valkey affects no other test."""
    name = f"scene_{uuid4().hex[:12]}"
    settings.setdefault("rate_limit_per_minute", 0)
    url = services.create_database(name)
    async with AsyncExitStack() as stack:
        stack.callback(services.drop_database, name)
        owner_conn = await stack.enter_async_context(await psycopg.AsyncConnection.connect(url, autocommit=True))
        api = await stack.enter_async_context(running_api(url, services.redis_url.format(0), **settings))
        instance = await stack.enter_async_context(running_instance(api))
        yield Callers(api, instance, await _headers_of_all(owner_conn, instance.instance_id), owner_conn)


async def _headers_of_all(owner_conn: psycopg.AsyncConnection, instance_id: UUID) -> dict[str, dict[str, str]]:
    key = await create_api_key(owner_conn, tenant_id="acme", name="backend")
    foreign = await create_api_key(owner_conn, tenant_id="other", name="backend")
    forged = issue_token("x" * 40, tenant_id="acme", user_id="ann", role="admin", expires_at=time.time() + 3600)
    found = {
        "nobody": {},
        "bad token": {"Authorization": f"Bearer {forged}"},
        "expired token": bearer(expires_at=time.time() - 60),
        "unknown API key": {"X-Api-Key": f"hck_{uuid4().hex}_{key[-43:]}", "X-User-Id": "ann"},
        "agent": {"Authorization": f"Bearer {tokens.agent_key(MASTER_KEY, instance_id, KEY_ID)}"},
        "admin of another tenant": bearer("other", "boss", "admin"),
        "API key of another tenant": {"X-Api-Key": foreign},
        "customer of another tenant": bearer("other", "ann"),
        "API key of another tenant for its customer": {"X-Api-Key": foreign, "X-User-Id": "ann"},
        "another customer": bearer(user="bob"),
        "API key for another customer": {"X-Api-Key": key, "X-User-Id": "bob"},
        "owner": bearer(user="ann"),
        "API key for the owner": {"X-Api-Key": key, "X-User-Id": "ann"},
        "admin": bearer(user="boss", role="admin"),
        "platform": bearer("hydracore", "op", "platform"),
        "API key": {"X-Api-Key": key},
    }
    assert tuple(found) == ALL_CALLERS
    return found
