"""Servers that a provider does not show: deleted, hidden for a moment, or in another project than the token's."""

from contextlib import AbstractAsyncContextManager
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from events import commands as c
from events.sql import Statements
from tests import lifecycle
from tests.orphan_servers import create_orphan
from tests.stack import Stack
from tests.sweeping import SHORT_GRACE_S, sweep_findings, sweep_until_vanished
from workers.deps import Deps
from workers.providers.hetzner import HetznerProvider
from workers.sweep import MISSING_MAX, SETTLED_S, sweep

HIDDEN = {"status": 404, "code": "not_found"}

#: How the release before, whose workers may still run after the migration, records sightings: it acts at the second.
SIGHT_BEFORE = b"""
INSERT INTO orphan (provider, server_id, first_seen_at, last_seen_at, sightings)
VALUES (%(provider)s, %(server_id)s, now(), now(), 1)
ON CONFLICT (provider, server_id) DO UPDATE SET
       last_seen_at = excluded.last_seen_at, sightings = orphan.sightings + 1
RETURNING sightings
"""
MISS_BEFORE = b"""
INSERT INTO missing_server (provider, server_id, first_missed_at, misses)
VALUES (%(provider)s, %(server_id)s, now(), 1)
ON CONFLICT (provider, server_id) DO UPDATE SET misses = missing_server.misses + 1
RETURNING misses
"""


async def hide(stack: Stack, provider: HetznerProvider, server_id: str, *, times: int | None) -> None:
    """Have the provider leave a server out of lists, and answer this many lookups by its id as not found."""
    await provider.set_labels(server_id, {})
    stack.cloudsim.fault("get_server", "error", server_id=int(server_id), times=times, **HIDDEN)


async def test_a_server_that_vanished_is_reported_and_its_instance_can_be_deleted(stack: Stack) -> None:
    instance_id = await stack.running()
    server_id = stack.logged_server_id(instance_id)
    stack.cloudsim.call("POST", f"/_sim/servers/{server_id}/vanish")

    await sweep_until_vanished(stack, server_id)

    detail = await stack.detail(instance_id)
    assert (detail["status"], detail["error_message"]) == ("error", "The server no longer exists at the provider")
    assert stack.has_happened(instance_id, "server_vanished", server_id=server_id)
    assert not await sweep_findings(stack, server_id)
    await stack.delete(instance_id)
    await stack.until_status(instance_id, "deleted")
    stack.assert_no_server(instance_id)


async def test_a_server_that_was_missed_for_a_moment_is_not_given_up(stack: Stack, provider: HetznerProvider) -> None:
    instance_id = await stack.running()
    server_id = stack.logged_server_id(instance_id)

    for _ in range(2):
        await hide(stack, provider, server_id, times=1)
        assert await sweep_findings(stack, server_id) == [("vanished", "watched")]
        assert await sweep_findings(stack, server_id) == [("wrong_labels", "labelled again")]
        assert not stack.rows("SELECT 1 FROM missing_server WHERE server_id = %s", server_id)

    assert (await stack.detail(instance_id))["status"] == "running"


async def test_this_release_and_the_one_before_count_each_other_s_sightings(
    owner_conn: psycopg.AsyncConnection,
) -> None:
    async def look(statement: bytes) -> float:
        cursor = await owner_conn.execute(statement, {"provider": "cloudsim", "server_id": "42"})
        ((counted_or_s,),) = await cursor.fetchall()
        return counted_or_s

    for before, name in ((SIGHT_BEFORE, "record_sighting"), (MISS_BEFORE, "record_missing")):
        now = Statements("workers", "sweep.sql")[name]
        first_s, count, third_s = await look(now), await look(before), await look(now)
        assert (first_s, count) == (0, 2)
        assert third_s > 0


async def test_a_server_that_was_just_created_is_not_reported_as_missing_yet(
    stack: Stack, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    # In a database that no worker uses, and with a server that the provider does not have.
    async with stack.deps(database_url=database_url) as deps:
        instance_id = await recorded(deps, *lifecycle.INTENDED, lifecycle.created(server_id="9999999999"))

        seen = list[list[str]]()
        for ago_s in (0, SETTLED_S + 1):
            await owner_conn.execute("UPDATE instance SET updated_at = now() - %s * interval '1 s'", (ago_s,))
            seen.append(await kinds(deps, instance_id))

    assert seen == [[], ["vanished"]]


async def test_a_server_with_the_recorded_id_but_another_name_counts_as_missing(
    stack: Stack, provider: HetznerProvider, database_url: str
) -> None:
    theirs = await create_orphan(provider)
    await provider.set_labels(theirs, {})

    async with stack.deps(database_url=database_url) as deps:
        running = (
            lifecycle.created(server_id=theirs) if each in lifecycle.CREATED[-1:] else each
            for each in lifecycle.RUNNING
        )
        instance_id = await recorded(deps, *running)
        found_of_it = await kinds(deps, instance_id)

    assert found_of_it == ["vanished"]
    await provider.delete_server(theirs)


async def test_a_server_that_was_given_up_by_mistake_is_left_alone_until_its_instance_is_deleted(
    stack: Stack, provider: HetznerProvider
) -> None:
    instance_id = await stack.running()
    server_id = stack.logged_server_id(instance_id)
    await hide(stack, provider, server_id, times=None)
    await sweep_until_vanished(stack, server_id)
    stack.cloudsim.call("DELETE", "/_sim/faults")
    await provider.set_labels(server_id, {"hc-installation": "hydracore"})

    for _ in range(3):
        seen = await sweep_findings(stack, server_id, grace_s=SHORT_GRACE_S)
        assert seen == [("reappeared", "left alone: it is removed when its instance is deleted")]

    assert (await stack.detail(instance_id))["status"] == "error"
    await stack.delete(instance_id)
    await stack.until_status(instance_id, "deleted")
    assert await provider.get_server(server_id) is None


@pytest.mark.parametrize(
    ("count", "believed"), [(2, "reported"), (MISSING_MAX + 1, None)], ids=["a few", "more than may be given up"]
)
async def test_if_most_servers_are_missing_a_few_are_given_up_after_the_grace_and_many_never(
    stack: Stack, database_url: str, count: int, believed: str | None
) -> None:
    ids = [lifecycle.instance_id(f"customer-{number}") for number in range(count)]
    async with another_project(stack, database_url) as deps:
        for number, instance_id in enumerate(ids):
            await run_on_a_server_of_another_project(deps, instance_id, number)
        watched = [] if believed is None else ["watched"] * count
        for _ in range(3):
            assert await missing_and_alarmed(deps, count) == watched
            async with deps.pool.connection() as connection:
                await connection.execute("UPDATE missing_server SET first_missed_at = now() - interval '10 s'")

    async with another_project(stack, database_url, orphan_grace_s=SHORT_GRACE_S) as deps:
        assert await missing_and_alarmed(deps, count) == ([] if believed is None else [believed] * count)
        states = [await deps.store.load(instance_id) for instance_id in ids]

    after = "running" if believed is None else "error"
    assert [state.status for state in states if state is not None] == [after] * count


async def test_a_server_that_reappears_while_too_many_are_missing_is_watched_again_from_the_start(
    stack: Stack, provider: HetznerProvider, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    server_id = await create_orphan(provider)
    await provider.set_labels(server_id, {})
    async with another_project(stack, database_url) as deps:
        running = (
            lifecycle.created(server_id=server_id) if each in lifecycle.CREATED[-1:] else each
            for each in lifecycle.RUNNING
        )
        instance_id = await recorded(deps, *running)
        first = [finding.action for finding in (await sweep(deps, dry_run=False)).findings]
        await owner_conn.execute("UPDATE missing_server SET first_missed_at = now() - interval '1 day'")

        await provider.set_labels(server_id, {"hc-installation": "another"})
        for number in range(100, 101 + MISSING_MAX):
            await run_on_a_server_of_another_project(deps, lifecycle.instance_id(f"customer-{number}"), number)
        too_many = await sweep(deps, dry_run=False)
        await owner_conn.execute("UPDATE instance SET status = 'deleting' WHERE id <> %s", (instance_id,))
        await provider.set_labels(server_id, {})
        again = [finding.action for finding in (await sweep(deps, dry_run=False)).findings]

    assert f"{MISSING_MAX + 1} of {MISSING_MAX + 2} servers are missing" in [one.why for one in too_many.not_compared]
    assert (first, again) == (["watched"], ["watched"])
    await provider.delete_server(server_id)


def another_project(stack: Stack, database_url: str, **settings: str) -> AbstractAsyncContextManager[Deps]:
    """A log of its own, and a token for a project without any of its servers."""
    return stack.deps(database_url=database_url, installation="another", **{"orphan_grace_s": "60", **settings})


async def missing_and_alarmed(deps: Deps, count: int) -> list[str]:
    """Sweep, and return the actions for vanished servers. An alarm must have said that all of them are missing."""
    with capture_logs() as logs:
        swept = await sweep(deps, dry_run=False)
    assert all(finding.kind == "vanished" for finding in swept.findings)
    assert swept.is_complete == bool(swept.findings)
    (alarm,) = [entry for entry in logs if entry["event"] == "most_servers_missing"]
    assert (alarm["log_level"], alarm["missing"], alarm["expected"]) == ("error", count, count)
    return [finding.action for finding in swept.findings]


async def run_on_a_server_of_another_project(deps: Deps, instance_id: UUID, number: int) -> None:
    way = (
        lifecycle.request(customer_id=f"customer-{number}"),
        lifecycle.plan(hostname=f"hc-{number}", vpn_ip=f"10.64.0.{16 + number}"),
        lifecycle.created(server_id=f"{10**9 + number}"),
        *lifecycle.RUNNING[len(lifecycle.CREATED) :],
    )
    for command in way:
        await deps.store.execute(instance_id, command, deps.origin(instance_id))


async def recorded(deps: Deps, *commands: c.AnyCommand) -> UUID:
    """An instance with these commands in the log."""
    instance_id = uuid4()
    for command in commands:
        await deps.store.execute(instance_id, command, deps.origin(instance_id))
    return instance_id


async def kinds(deps: Deps, instance_id: UUID) -> list[str]:
    """What a sweep would find for the instance."""
    findings = (await sweep(deps, dry_run=True)).findings
    return [finding.kind for finding in findings if finding.instance_id == instance_id]
