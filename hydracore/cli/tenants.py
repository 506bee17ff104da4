"""A tenant whose id was mistyped must not look like one who has done nothing."""

from typing import TYPE_CHECKING, Final

from events.sql import Statements
from hydracore.cli.printing import say

if TYPE_CHECKING:
    from psycopg import AsyncConnection

#: As `audit show` asks, so that no two commands differ about who is known.
_IS_TENANT: Final = Statements("hydracore.audit", "history.sql")["is_tenant"]


async def is_tenant(connection: "AsyncConnection", tenant_id: str) -> bool:
    """Whether the log has anything of theirs."""
    cursor = await connection.execute(_IS_TENANT, {"tenant_id": tenant_id})
    return await cursor.fetchone() == (True,)


def say_unknown(tenant_id: str) -> None:
    """For whoever has nothing to show of them. On standard error, as what a program reads is as empty as before."""
    say(f"hydracore: The log knows no tenant {tenant_id!r}", err=True)
