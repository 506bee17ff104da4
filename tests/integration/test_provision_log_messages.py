"""The customer's log is stored in words. An upgrade to other words keeps the stored ones until a rebuild, and is no drift."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from events.verification_findings import Finding
from hydracore import db
from hydracore.audit.verifying import Progress, Request, verify
from hydracore.db import migrate, migrations, readiness
from projections.registry import projections
from tests import lifecycle
from tests.rebuilding import dry_run_here, rebuild_here
from tests.store_commands import create_instance, open_store, origin

MIGRATIONS_BEFORE_VERSION_2 = 24
LINES = "SELECT message FROM provision_log WHERE message LIKE 'Attempt 1 failed: %' ORDER BY message"
EARLIER, LATER = (
    f"Attempt 1 failed: {words}" for words in ("No network address is free", "No VPN address is free in this region")
)


async def fail(database_url: str, customer: str) -> None:
    """Create an instance of the customer's, whose first attempt fails."""
    async with open_store(database_url) as (store, _):
        instance_id = await create_instance(store, customer_id=customer)
        plan = lifecycle.plan(hostname=f"host-{customer}", vpn_ip=f"10.64.0.{ord(customer[0])}")
        for command in (plan, lifecycle.failed(code="no_address")):
            await store.execute(instance_id, command, origin("worker"))


async def messages(database_url: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        return [row[0] for row in await (await connection.execute(LINES)).fetchall()]


async def findings(database_url: str) -> list[Finding]:
    return (await asyncio.to_thread(verify, Request(conninfo=database_url), Progress())).findings


async def test_lines_keep_their_stored_words_until_a_rebuild_rewords_all_of_them(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = migrations()[:MIGRATIONS_BEFORE_VERSION_2]
    with monkeypatch.context() as earlier:
        for module in (db, readiness):
            earlier.setattr(module, "migrations", lambda: steps)
        migrate(empty_url)
        await fail(empty_url, "ada")
    migrate(empty_url)
    await fail(empty_url, "bob")

    assert await messages(empty_url) == [EARLIER, EARLIER]
    assert await findings(empty_url) == []
    # The words of a still older build.
    with psycopg.connect(empty_url) as connection:
        connection.execute(
            "UPDATE provision_log SET message = 'Attempt 1 failed: long ago' WHERE message = %s", (EARLIER,)
        )

    report = await rebuild_here(empty_url, projections()["provision_log"])
    await fail(empty_url, "eve")

    assert (report.version_before, report.version, report.drifted, report.swapped) == (1, 2, 0, True)
    assert await messages(empty_url) == [LATER] * 3
    assert await findings(empty_url) == []
    assert (await dry_run_here(empty_url, projections()["provision_log"])).drifted == 0
