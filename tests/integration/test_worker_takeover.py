"""A worker is frozen for so long that another takes over: what either of them sees counts only for the log as it was then."""

import asyncio
from uuid import UUID, uuid4

import psycopg
import pytest

from events import commands as c
from events.ids import lane_of
from tests import lifecycle
from tests.locked_lanes import is_treated_as_locked, lock_lanes
from tests.lost_locks import END_LOCK_SESSIONS, ClockWatchingDeps, record_now
from tests.stack import FINAL_STATUSES, Stack
from workers.advance import advance
from workers.deps import Deps

GAVE_UP, DELETION = lifecycle.failed(retryable=False), lifecycle.delete()


@pytest.mark.parametrize(("end", "looks"), [(GAVE_UP, 1), (DELETION, 2)], ids=["a failed attempt", "a deletion"])
async def test_a_server_recorded_just_before_it_would_be_declared_absent_is_still_deleted(
    stack: Stack, database_url: str, owner_conn: psycopg.AsyncConnection, end: c.AnyCommand, looks: int
) -> None:
    instance_id = uuid4()
    stack.cloudsim.fault("create_server", "hold_before", name=f"hc-{instance_id}")
    # In a database that no worker uses.
    async with (
        stack.deps(database_url=database_url, provider_timeout_s="30") as frozen,
        stack.deps(database_url=database_url, provider_timeout_s="0.5") as brisk,
    ):
        other = ClockWatchingDeps.of(brisk, store=frozen.store, providers=frozen.providers)
        await record_now(other, instance_id, lifecycle.request())
        late = asyncio.create_task(advance(frozen, instance_id))
        await stack.until(stack.cloudsim.held)
        await owner_conn.execute(END_LOCK_SESSIONS)
        async with frozen.locks.hold(uuid4()):
            # Taking another instance's lock makes the frozen worker notice that its session is gone.
            await record_now(other, instance_id, end)
        stack.cloudsim.fault("list_servers", "hold_after", skip=looks - 1)
        ending = asyncio.create_task(stack.until(lambda: has_ended(other, instance_id)))
        await stack.until(lambda: len(stack.cloudsim.held()) == 2)

        create, look = stack.cloudsim.held()
        async with lock_lanes(database_url, [lane_of(instance_id)]) as holder:
            # The server is created after the look that has not seen it.
            stack.cloudsim.call("POST", "/_sim/release", {"id": create["id"]})
            await stack.until(lambda: is_treated_as_locked(frozen.store, lane_of(instance_id)))
            other.clock_read.clear()
            stack.cloudsim.call("POST", "/_sim/release", {"id": look["id"]})
            await other.clock_read.wait()
            await holder.rollback()
        await late
        await ending

    assert [server["deleted_at"] is None for server in stack.servers(instance_id)] == [False]


async def test_a_refused_late_create_does_not_give_up_the_server_of_the_same_attempt(
    stack: Stack, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    instance_id = uuid4()
    stack.cloudsim.fault("list_ssh_keys", "hold_before")
    settings = {"database_url": database_url, "provider_timeout_s": "30"}
    # In a database that no worker uses.
    async with stack.deps(**settings) as frozen, stack.deps(**settings) as other:
        await record_now(other, instance_id, lifecycle.request())
        late = asyncio.create_task(advance(frozen, instance_id))
        await stack.until(stack.cloudsim.held)
        await owner_conn.execute(END_LOCK_SESSIONS)
        await advance(other, instance_id)
        made = stack.server(instance_id)

        stack.cloudsim.fault("create_server", "no_capacity", name=f"hc-{instance_id}")
        stack.cloudsim.call("POST", "/_sim/release", {"all": True})
        await late
        state = await other.store.load(instance_id)

    assert state is not None
    assert state.attempt is not None
    assert (state.attempt.failure, state.attempt.server_id) == (None, str(made["id"]))
    assert stack.server(instance_id)["id"] == made["id"]
    stack.cloudsim.call("DELETE", f"/v1/servers/{made['id']}")


async def has_ended(deps: Deps, instance_id: UUID) -> bool:
    await advance(deps, instance_id)
    state = await deps.store.load(instance_id)
    return state is not None and state.status in FINAL_STATUSES
