"""Two keyrings on one database: one of this process, and a fresh one that stands for another process."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.keys import Keyring
from events.master_keys import MasterKeys
from hydracore.db.pool import open_pool

MASTER_KEY, OTHER_MASTER_KEY = bytes(range(32)), bytes(range(1, 33))
ADA = {"tenant_id": "acme", "customer_id": "ada", "field": "customer_email"}
EMAIL = "ada@example.com"


@pytest.fixture
async def pool(database_url: str) -> AsyncGenerator[AsyncConnectionPool]:
    async with open_pool(database_url, role="hydracore_app", application="test", size=4) as opened:
        yield opened


@pytest.fixture
def keyring(pool: AsyncConnectionPool) -> Keyring:
    return Keyring(pool, master_keys=MasterKeys(MASTER_KEY))


@pytest.fixture
def fresh_keyring(pool: AsyncConnectionPool) -> Keyring:
    """The keyring of another process: it remembers nothing."""
    return Keyring(pool, master_keys=MasterKeys(MASTER_KEY))


async def destroy_keys(connection: AsyncConnection) -> None:
    """Destroy every customer's key, as an erasure does."""
    await connection.execute("UPDATE customer_key SET wrapped_key = NULL, destroyed_at = now()")
