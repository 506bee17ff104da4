"""Rebuilds that clients do not notice, with an API that is read and written meanwhile; and rebuilds that are killed."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from events.commands import RecordUsage
from events.types import UsageEntry
from hydracore.clock import now_ms
from projections.followed import followed_projections
from projections.follower import Follower
from projections.instance import InstanceProjection
from projections.processes import fold_in_processes
from projections.rebuild import rebuild, rollback
from projections.registry import projections
from tests.api_server import Api, bearer, running_api
from tests.instance_fixtures import RunningInstance, execute_commands, running_instance
from tests.rebuilding import QUIET, dry_run_here, follow_all, rebuild_here, write_instances
from tests.store_commands import open_store
from tests.waiting import until

ORDER = {"region_id": "local", "tier_id": "starter"}


class Customers:
    """Order, read, list and delete until they are stopped, and note each wrong answer."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._stop = False
        self.requests = 0
        self.commands = 0
        self.wrong = list[str]()
        self.slowest_s = 0.0

    @asynccontextmanager
    async def at_work(self, number: int) -> AsyncGenerator[None]:
        tasks = [asyncio.create_task(self._live(f"customer-{each}")) for each in range(number)]
        try:
            yield
        finally:
            self._stop = True
            await asyncio.gather(*tasks)

    async def _live(self, user: str) -> None:
        headers, ids, round_ = bearer(user=user), list[str](), 0
        while not self._stop:
            round_ += 1
            key = {"idempotency_key": f"{user}-{round_}"}
            made = await self._ask("POST", "/v1/instances", 202, headers, json=ORDER | key | {"agent_name": user})
            ids.append(made.get("instance_id", ""))
            seen = await self._ask("GET", f"/v1/instances/{ids[-1]}", 200, headers)
            self._check(seen.get("agent_name") == user and seen.get("status") == "pending", f"read {seen}")
            if round_ % 2 == 0:
                await self._ask("DELETE", f"/v1/instances/{ids[0]}", 200, headers)
                gone = await self._ask("GET", f"/v1/instances/{ids.pop(0)}", 200, headers)
                self._check(gone.get("status") == "deleting", f"deleted {gone}")
            listed = await self._ask("GET", "/v1/instances", 200, headers)
            found = {one["id"] for one in listed.get("instances", [])}
            self._check(found >= set(ids), f"listed {len(found)} of {len(ids)}")

    async def _ask(self, method: str, path: str, expected: int, headers: dict[str, str], **body: Any) -> dict[str, Any]:
        began_s = time.perf_counter()
        answer = await self._api.client.request(method, path, headers=headers, timeout=30, **body)
        self.slowest_s = max(self.slowest_s, time.perf_counter() - began_s)
        self.requests += 1
        self.commands += method != "GET"
        self._check(answer.status_code == expected, f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.status_code == expected else {}

    def _check(self, right: bool, what: str) -> None:  # noqa: FBT001 - a condition, as in assert
        if not right:
            self.wrong.append(what)


async def test_rebuilds_and_a_rollback_under_load_cause_no_failed_request_and_no_wrong_answer(
    database_url: str, redis_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with running_api(database_url, redis_url) as api:
        customers = Customers(api)
        async with customers.at_work(4):
            reports = []
            for name in ("instance", "provision_log", "reservation"):
                folding = fold_in_processes(database_url, workers=1)
                reports.append(await rebuild(database_url, projections()[name], folding=folding, callbacks=QUIET))
            reports.append(await rollback(database_url, InstanceProjection()))
            # These requests use statements that were prepared before the swaps.
            enough = customers.requests + 40
            await until(lambda: customers.requests > enough)

    assert customers.wrong == []
    assert all(report.stopped_s is not None and report.drifted == 0 for report in reports)
    # A rebuild appends nothing: the log has the customers' commands and no others.
    assert await (await owner_conn.execute("SELECT count(*) FROM command")).fetchone() == (customers.commands,)
    assert (await dry_run_here(database_url, InstanceProjection())).drifted == 0
    told = [f"{report.name} {1000 * (report.stopped_s or 0):.0f} ms in try {report.tries}" for report in reports]
    sys.stdout.write(
        f"writers stopped: {', '.join(told)}; the slowest of {customers.requests} requests took"
        f" {1000 * customers.slowest_s:.0f} ms\n"
    )


async def test_a_rebuild_and_a_rollback_of_a_followed_table_show_no_old_or_wrong_totals(
    database_url: str, redis_url: str
) -> None:
    usage = projections()["usage_daily"]
    async with (
        running_api(database_url, redis_url) as api,
        running_instance(api, reachable=False) as instance,
        followed(api.parts.pool),
        metered(instance) as totals,
    ):
        folding = fold_in_processes(database_url, workers=1)
        reports = [
            await rebuild(database_url, usage, folding=folding, callbacks=QUIET),
            await rollback(database_url, usage),
        ]
        enough = totals[-1] + 3
        await until(lambda: totals[-1] >= enough)

    # Whatever was live, no answer has less than the one before it.
    assert totals == sorted(totals)
    assert all(report.stopped_s is not None and report.drifted == 0 for report in reports)
    assert (await dry_run_here(database_url, usage)).drifted == 0


@asynccontextmanager
async def followed(pool: AsyncConnectionPool) -> AsyncGenerator[None]:
    """While a follower keeps the followed tables up to date, as in a relay."""
    follower = Follower(pool, *followed_projections())
    await follower.create_checkpoints()

    async def follow() -> None:
        while True:
            await follower.catch_up()
            await asyncio.sleep(0.01)

    async with at_work(follow()):
        yield


@asynccontextmanager
async def metered(instance: RunningInstance) -> AsyncGenerator[list[int]]:
    """While the agent reports one model call after the other, each once the last is visible. The list has every
    total that its owner is shown.
    """
    totals = [0]

    async def is_seen(seq: int) -> bool:
        answer = await instance.ask("GET", "/usage")
        assert answer.status_code == 200, answer.text
        totals.append(answer.json()["total_requests"])
        return totals[-1] >= seq

    async def report() -> None:
        for seq in itertools.count(1):
            entry = UsageEntry(
                at_ms=now_ms(),
                model="scripted-1",
                prompt_tokens=7,
                completion_tokens=2,
                cost_usd="0.001",
                channel="api",
            )
            usage = RecordUsage(at_ms=now_ms(), ledger_id=instance.instance_id, seq=seq, entries=(entry,))
            await execute_commands(instance.api, instance.instance_id, usage)
            await until(partial(is_seen, seq))
            assert totals[-1] == seq

    async with at_work(report()):
        yield totals


@asynccontextmanager
async def at_work(work: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """While this endless work runs. If it fails, the test fails."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        yield
        task.cancel()


WAITS = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query ~ %s"
IS_INDEXED = "SELECT FROM projection_generation WHERE name = 'instance' AND state = 'indexed' AND %s <> ''"

#: Where a rebuild is held to be killed there: the lock that it waits for, and a query that shows that it does.
HOLDS: dict[str, tuple[LiteralString, LiteralString, str]] = {
    "folding": ("LOCK TABLE event IN ACCESS EXCLUSIVE MODE", WAITS, "uuid_send"),
    "indexing": ("LOCK TABLE instance_g2.instance IN ROW EXCLUSIVE MODE", WAITS, "ADD PRIMARY KEY"),
    "swapping": ("SELECT FROM lane WHERE lane = 63 FOR UPDATE", IS_INDEXED, "-"),
}


@pytest.mark.parametrize("point", HOLDS)
async def test_a_rebuild_killed_in_any_phase_can_be_resumed(
    point: str, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    hold, wanted, of = HOLDS[point]
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=8)
        await follow_all(pool)

        async with (
            await psycopg.AsyncConnection.connect(database_url) as first,
            await psycopg.AsyncConnection.connect(database_url) as holder,
        ):
            await first.execute(HOLDS["folding"][0])
            killed = await start_rebuild(database_url)
            await until(lambda: found(owner_conn, *HOLDS["folding"][1:]))
            if point != "folding":
                await holder.execute(hold)
                await first.rollback()
                await until(lambda: found(owner_conn, wanted, of))
            os.kill(killed.pid, signal.SIGKILL)
            await killed.wait()

        # Its locks are released once PostgreSQL notices that the killed process is gone.
        await until(lambda: session_gone(owner_conn))
        await write_instances(store, count=4, start=8)
        report = await rebuild_here(database_url, InstanceProjection())

    assert (report.resumed, report.generation, report.drifted) == (True, 2, 0)
    assert report.stopped_s is not None
    assert (await dry_run_here(database_url, InstanceProjection())).drifted == 0


async def found(connection: psycopg.AsyncConnection, query: LiteralString, *parameters: str) -> bool:
    return (await connection.execute(query, parameters)).rowcount > 0


async def start_rebuild(database_url: str) -> asyncio.subprocess.Process:
    environ = os.environ | {"HYDRACORE_DATABASE_URL": database_url}
    command = (sys.executable, "-m", "hydracore", "projections", "rebuild", "instance", "--workers", "1")
    return await asyncio.create_subprocess_exec(*command, env=environ)


async def session_gone(connection: psycopg.AsyncConnection) -> bool:
    return not await found(
        connection,
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s",
        "hydracore-rebuild",
    )
