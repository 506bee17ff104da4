"""A standby takes over while everything runs: one that has all that was acknowledged, and one that lacks the last of it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from click.testing import CliRunner

from events.ids import instance_id_for, lane_of
from hydracore.audit.seal_file import SealFile
from hydracore.auth import issue_token
from hydracore.cli import main
from tests.consistency import check_consistency
from tests.replicated import Replicated, query, replicated_fixture
from tests.sealed_log import SEAL_KEY_TEXT
from tests.secrecy import assert_no_secret_leaked
from tests.stack import FAST_HEARTBEATS, JWT_SECRET, TENANT, Stack
from workers.sweep import sweep

__all__ = ["replicated_fixture"]

INSTANCES = 4

#: The customers that have a key.
KEYS = "SELECT customer_id FROM customer_key WHERE wrapped_key IS NOT NULL"


@pytest.fixture
async def stack(replicated: Replicated, tmp_path: Path) -> AsyncGenerator[Stack]:
    """A stack on a primary with a standby, that seals all the time."""
    settings = {"seal_key": SEAL_KEY_TEXT, "seal_file": str(tmp_path / "seals.jsonl"), "seal_interval_s": "0.2"}
    stack = Stack(
        tmp_path, database_url=replicated.database_url, redis_url=replicated.redis_url, **settings, **FAST_HEARTBEATS
    )
    try:
        await stack.start(boot="inline")
        yield stack
        for part in (stack.api, stack.relay, stack.worker):
            assert part.is_alive, part.output()[-3000:]
        stack.kill()
        assert await check_consistency(replicated.second.url())
        assert_no_secret_leaked(stack)
    finally:
        stack.close()


@pytest.mark.long
async def test_failover_to_a_synchronous_standby_loses_nothing_acknowledged_and_work_continues(
    stack: Stack, replicated: Replicated
) -> None:
    await replicated.synchronous()
    named, deleted = await stack.running(), await stack.running()
    names: list[str] = []
    stop = asyncio.Event()

    async def rename() -> None:
        while not stop.is_set():
            answer = await stack.ask("POST", f"/v1/instances/{named}/config", {"agent_name": f"{len(names)}"})
            assert answer.is_success, answer.text
            names.append(f"{len(names)}")

    renaming = asyncio.create_task(rename())
    creating = [asyncio.create_task(stack.create()) for _ in range(INSTANCES)]
    deleting = asyncio.create_task(stack.delete(deleted))
    await creating[0]
    await replicated.fail_over()
    ids = [await one for one in creating]
    before = len(names)
    for instance_id in ids:
        await stack.until_status(instance_id, "running")
        stack.server(instance_id)
    await deleting
    await stack.until_status(deleted, "deleted")
    await stack.until(lambda: len(names) > before)
    stop.set()
    await renaming

    assert [event["agent_name"] for event in stack.events(named) if event["type"] == "config_changed"] == names
    assert len(stack.cloudsim.servers()) == 1 + INSTANCES
    stack.assert_no_server(deleted)
    assert not any(word in stack.output() for word in ("step_broke", "log_corrupted", "history_unreadable", "seal_"))


@pytest.mark.long
async def test_failover_to_a_lagging_standby_reports_lost_history_and_doubles_no_server(
    stack: Stack, replicated: Replicated
) -> None:
    hold(stack, "hold_before")
    intended = await stack.create()
    await stack.until(stack.cloudsim.held)
    await replicated.caught_up()
    await replicated.cut_off()
    # The standby knows that there is to be a server, and not that there is. Of the other instance it knows nothing.
    release(stack)
    await stack.until_status(intended, "running")
    hold(stack, "hold_after")
    key, lost = stack.new_key()
    await stack.create(key)
    await stack.until(stack.cloudsim.held)
    await stack.until(lambda: all_is_sealed(stack))

    async with ordered_by_eve(stack, replicated) as ordering:
        await replicated.fail_over()
    release(stack)

    answer = await ordering
    assert answer.status_code == 202, answer.text
    assert ("eve",) in await query(replicated.second, KEYS)
    await stack.until_status(intended, "running")
    await stack.until(lambda: stack.worker.has_logged("instance_gone"))
    assert await stack.create(key) == lost
    await stack.until(lambda: stack.worker.has_logged("server_unaccounted"))
    async with stack.deps() as deps:
        await sweep(deps, dry_run=False, remove_unaccounted=True)
    await stack.until_status(lost, "running")
    for instance_id in (intended, lost):
        stack.server(instance_id)
    assert "step_broke" not in stack.output()
    await stack.until(lambda: stack.relay.has_logged("seals_not_copied"))
    verified = await asyncio.to_thread(CliRunner().invoke, main, ["audit", "verify"], env=stack.environ())
    assert verified.exit_code == 1
    assert "rewritten" in verified.output or "tail_missing" in verified.output
    seals = seal_file(stack)
    seals.rename(seals.with_suffix(".old"))
    await stack.until(lambda: all_is_sealed(stack))


def hold(stack: Stack, fault: str) -> None:
    stack.cloudsim.call("POST", "/_sim/faults", {"operation": "create_server", "fault": fault})


def release(stack: Stack) -> None:
    stack.cloudsim.call("POST", "/_sim/release", {"all": True})


def seal_file(stack: Stack) -> Path:
    return Path(stack.environ()["HYDRACORE_SEAL_FILE"])


def all_is_sealed(stack: Stack) -> bool:
    ((events,),) = stack.rows("SELECT sum(head) FROM lane_head")
    last = SealFile(seal_file(stack)).last()
    return last is not None and sum(last.heads) >= events


@asynccontextmanager
async def ordered_by_eve(stack: Stack, replicated: Replicated) -> AsyncGenerator[asyncio.Task[httpx.Response]]:
    """Orders of a new customer, whose key is made in the first database, and whose order has not been appended there."""
    token = issue_token(JWT_SECRET, tenant_id=TENANT, user_id="eve", role="customer", expires_at=4_000_000_000)
    lane = lane_of(instance_id_for(tenant_id=TENANT, customer_id="eve", idempotency_key="hers"))
    order = {"region_id": "local", "tier_id": "starter", "user_display_name": "Eve", "idempotency_key": "hers"}
    headers = {"Authorization": f"Bearer {token}"}

    async def has_a_key() -> bool:
        return ("eve",) in await query(replicated.first, KEYS)

    holder = await psycopg.AsyncConnection.connect(replicated.first.url())
    try:
        await holder.execute("SELECT FROM lane WHERE lane = %s FOR UPDATE", (lane,))
        ordering = asyncio.create_task(stack.ask("POST", "/v1/instances", order, headers=headers))
        await stack.until(has_a_key)
        yield ordering
    finally:
        await holder.close()
