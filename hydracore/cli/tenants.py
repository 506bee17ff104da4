"""Tells an unknown, perhaps mistyped, tenant from one without data."""

from typing import TYPE_CHECKING, Final

from events.sql import Statements
from hydracore.cli.printing import say

if TYPE_CHECKING:
    from psycopg import AsyncConnection

#: The query of `audit show`, so that all commands agree on which tenants are known.
_IS_TENANT: Final = Statements("hydracore.audit", "history.sql")["is_tenant"]


async def is_tenant(connection: "AsyncConnection", tenant_id: str) -> bool:
    """Whether the log has anything of the tenant."""
    cursor = await connection.execute(_IS_TENANT, {"tenant_id": tenant_id})
    return await cursor.fetchone() == (True,)


def warn_unknown_tenant(tenant_id: str) -> None:
    """Print on standard error, so that standard output stays empty for programs, that the log has no such tenant."""
    say(f"hydracore: The log has no tenant {tenant_id!r}", err=True)
