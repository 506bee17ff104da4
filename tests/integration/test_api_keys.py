"""API keys of tenants' backends: made, shown and revoked by hand, and dead for good once they are revoked."""

from __future__ import annotations

from uuid import UUID

import psycopg

from hydracore.auth import Authenticator, AuthError, create_api_key, revoke_api_key
from hydracore.db.pool import open_pool
from tests.waiting import until


async def test_a_clock_that_is_set_back_keeps_no_revoked_key_alive(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    now_s = 1_800_000_000.0
    key = await create_api_key(owner_conn, tenant_id="acme", name="backend")
    async with open_pool(database_url, role="hydracore_app", application="test", size=1) as pool:
        door = Authenticator(pool, jwt_secret="s" * 32, clock=lambda: now_s)
        assert (await door.principal_of_key(key)).tenant_id == "acme"

        now_s -= 600
        assert await revoke_api_key(owner_conn, tenant_id="acme", key_id=UUID(key.split("_")[1]))

        async def is_refused() -> bool:
            try:
                await door.principal_of_key(key)
            except AuthError:
                return True
            return False

        await until(is_refused, seconds_max=5)
