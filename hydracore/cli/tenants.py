"""Tells an unknown, perhaps mistyped, tenant from one without data."""

from typing import TYPE_CHECKING, Final

import click

from events.sql import Statements

if TYPE_CHECKING:
    from psycopg import AsyncConnection

#: The query of `audit show`, so that all commands agree on which tenants are known.
_IS_TENANT: Final = Statements("hydracore.audit", "history.sql")["is_tenant"]


async def require_tenant(connection: "AsyncConnection", tenant_id: str) -> None:
    """Raise `click.UsageError` unless the log has anything of the tenant."""
    cursor = await connection.execute(_IS_TENANT, {"tenant_id": tenant_id})
    if await cursor.fetchone() != (True,):
        raise click.UsageError(f"The log has no tenant {tenant_id!r}")
