"""A standby takes over: no acknowledged append is lost, and decisions and keys of a lost history are made again."""

from __future__ import annotations

import asyncio

import pytest

from events import commands as c
from events import shared_connection
from events.keys import Keyring
from events.master_keys import MasterKeys
from events.state import Instance
from hydracore.db.pool import open_pool
from tests import lifecycle
from tests.replicated import Replicated, query, replicated_fixture
from tests.store_commands import create_instance, open_store, origin
from tests.waiting import until

__all__ = ["replicated_fixture"]

#: How many sessions wait for the standby to have what they commit.
COMMITTING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


async def test_no_append_is_acknowledged_before_the_synchronous_standby_has_it(
    replicated: Replicated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_connection, "LATE_AFTER_S", 0.05)
    await replicated.synchronous()
    async with open_store(replicated.database_url) as (store, _):
        await create_instance(store, key="before")
        await replicated.cut_off()

        first = asyncio.create_task(create_instance(store, key="first"))
        await until(lambda: has(replicated, COMMITTING, 1))
        behind = [asyncio.create_task(create_instance(store, key=f"behind {number}")) for number in range(10)]
        answered, _ = await asyncio.wait([first, *behind], timeout=1)

        assert not answered
        assert await query(replicated.second, "SELECT count(*) FROM event") == [(1,)]
        await replicated.reconnect()
        await asyncio.gather(first, *behind)
    assert await query(replicated.second, "SELECT count(*) FROM event") == [(12,)]


async def has(replicated: Replicated, statement: str, count: int) -> bool:
    return await query(replicated.first, statement) == [(count,)]


async def test_a_change_that_was_decided_on_a_lost_history_is_decided_again(replicated: Replicated) -> None:
    async with open_store(replicated.database_url) as (store, _):
        ada = await create_instance(store)
        await replicated.caught_up()
        await replicated.cut_off()
        await store.execute(ada, lifecycle.configure(agent_name="lost"), origin())
        seen: list[str | None] = []

        async def command_at(state: Instance | None) -> c.AnyCommand:
            assert state is not None
            seen.append(state.agent_name)
            if state.agent_name == "lost":
                await replicated.fail_over()
                async with open_store(replicated.database_url) as (other, _):
                    await other.execute(ada, lifecycle.configure(agent_name="of the new history"), origin())
            return lifecycle.configure(recipe_id="written")

        state = (await store.change(ada, command_at, origin())).state

    assert seen == ["lost", "of the new history"]
    assert (state.version, state.agent_name, state.recipe_id) == (3, "of the new history", "written")


async def test_the_key_of_a_text_sealed_during_a_failover_is_not_lost(replicated: Replicated) -> None:
    eve = {"tenant_id": "acme", "customer_id": "eve", "field": "system_prompt"}
    async with open_pool(replicated.database_url, role="hydracore_app", application="test", size=2) as pool:
        keyring, other = (Keyring(pool, master_keys=MasterKeys(bytes(32))) for _ in range(2))
        await replicated.cut_off()
        before = await keyring.seal("before", **eve)

        await replicated.fail_over()
        after = await keyring.seal("after", **eve)
        await pool.check()
        await keyring.ensure_stored(tenant_id="acme", customer_id="eve")

        assert [await other.open(sealed, **eve) for sealed in (before, after)] == ["before", "after"]
