"""Creates instances over HTTP, for tests that call one API as several tenants."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest_asyncio

from events import commands as c
from events.record import Origin
from events.state import TEARDOWN_STEPS
from tests.api_server import Api

INSTANCE_REQUEST = {"region_id": "local", "tier_id": "starter"}


async def request_instance(api: Api, headers: dict[str, str], **fields: Any) -> str:
    answer = await api.client.post("/v1/instances", json=INSTANCE_REQUEST | fields, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()["instance_id"]


async def finish_deletion(api: Api, instance_id: str) -> None:
    """What the workers would do."""
    commands = [c.RecordTeardownStep(at_ms=1, step=step) for step in TEARDOWN_STEPS]
    for command in (*commands, c.CompleteDeletion(at_ms=1)):
        origin = Origin(actor="worker", command_id=uuid4(), correlation_id=uuid4())
        await api.parts.store.execute(UUID(instance_id), command, origin)


async def listed_ids(api: Api, headers: dict[str, str], query: str = "") -> list[str]:
    answer = await api.client.get(f"/v1/instances{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["instances"]]


@pytest_asyncio.fixture(loop_scope="module", name="new_events")
async def new_events_fixture(owner_conn: psycopg.AsyncConnection) -> Callable[[], Awaitable[int]]:
    """Counts the events of all tenants that were appended since the test began."""

    async def count() -> int:
        row = await (await owner_conn.execute("SELECT count(*) FROM event")).fetchone()
        assert row is not None
        return row[0]

    before = await count()

    async def counted() -> int:
        return await count() - before

    return counted
