"""Two stores on one database, which stand for two processes, and helpers for one instance of the customer Ada."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from uuid import UUID, uuid4

import pytest

from events import commands as c
from events.ids import command_id_for
from events.record import Origin
from events.store import EventStore
from tests.lifecycle import instance_id
from tests.store_commands import open_store, origin

ADA = instance_id("ada")


@pytest.fixture(name="store")
async def store_fixture(database_url: str) -> AsyncGenerator[EventStore]:
    async with open_store(database_url) as (opened, _):
        yield opened


@pytest.fixture(name="other_store")
async def other_store_fixture(database_url: str) -> AsyncGenerator[EventStore]:
    """A store of another process, as far as the log can tell."""
    async with open_store(database_url) as (opened, _):
        yield opened


def request_origin(request_hash: bytes | None = None, result: bytes | None = None, stream_id: UUID = ADA) -> Origin:
    return Origin(
        actor="customer:ada",
        command_id=command_id_for(stream_id, "request"),
        correlation_id=uuid4(),
        causation_id=UUID(int=9),
        request_hash=request_hash,
        result=result,
    )


async def execute_all(store: EventStore, *commands: c.AnyCommand) -> None:
    """Give `commands` to Ada's instance one after the other."""
    for command in commands:
        await store.execute(ADA, command, origin())
