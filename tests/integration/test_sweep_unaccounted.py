"""Servers with our label that are unknown to the log: after a restore, or with the log of another installation."""

import asyncio

import pytest
from structlog.testing import capture_logs

from tests import lifecycle
from tests.orphan_servers import create_orphan, create_orphan_of, other_installation
from tests.stack import Stack
from tests.sweeping import SHORT_GRACE_S, run_sweep_command
from workers.deps import Deps
from workers.orphans import UNACCOUNTED_MAX
from workers.providers.hetzner import HetznerProvider
from workers.sweep import sweep

#: The log as it was restored: it has one instance, which is about to get its second server.
KNOWN = lifecycle.instance_id()
LIFE = (lifecycle.request(), lifecycle.plan(), lifecycle.failed(), lifecycle.discarded(), lifecycle.plan(2))


@pytest.mark.parametrize(
    ("known", "unknown"),
    [(1, 2), (UNACCOUNTED_MAX + 2, UNACCOUNTED_MAX + 1)],
    ids=["most of the listed servers", "many"],
)
async def test_if_the_log_knows_too_few_servers_only_an_operator_removes_the_unknown_ones(
    stack: Stack, provider: HetznerProvider, database_url: str, known: int, unknown: int
) -> None:
    ours = {"hc-installation": f"restored-{known}"}
    # The first is labelled as this release does, the others as an earlier release did, without intents.
    over = [await create_orphan_of(provider, KNOWN, **ours, **{"hc-intent": lifecycle.token_hash()[:16]})]
    over += [await create_orphan_of(provider, KNOWN, **ours) for _ in range(known - 1)]
    # Servers from the lost history: of a later attempt, and of one whose intent the restored log has made again.
    later = [await create_orphan_of(provider, KNOWN, **ours, **{"hc-attempt": "3"})]
    later += [
        await create_orphan_of(
            provider, KNOWN, **ours, **{"hc-attempt": "2", "hc-intent": lifecycle.token_hash(7)[:16]}
        )
    ]
    later += [await create_orphan(provider, **ours) for _ in range(unknown - 2)]
    settings = {"database_url": database_url, "installation": ours["hc-installation"], "orphan_grace_s": SHORT_GRACE_S}

    async with stack.deps(**settings) as deps:
        for command in LIFE:
            await deps.store.execute(KNOWN, command, deps.origin(KNOWN))
        left_alone = dict.fromkeys(later, "left alone: unknown to the log")
        for done in ("watched", "removed"):
            assert await swept_and_alarmed(deps, unknown, known + unknown) == dict.fromkeys(over, done) | left_alone
        await stack.until(lambda: are_left(provider, ours, later))
        assert await swept_and_alarmed(deps, unknown, unknown) == left_alone

    seen = await asyncio.to_thread(run_sweep_command, stack.environ(**settings), "--dry-run")
    told = await asyncio.to_thread(run_sweep_command, stack.environ(**settings), "--remove-unaccounted")

    assert (seen.status, told.status) == (1, 0), told.stderr
    assert seen.stdout.count("left alone: unknown to the log") == unknown
    assert f"provider=cloudsim could not be checked: the log has no record of {unknown} of {unknown}" in seen.stdout
    assert told.stdout.count("kind=orphan") == told.stdout.count("action=removed") == unknown
    await stack.until(lambda: are_left(provider, ours, []))


async def test_unknown_servers_that_are_few_enough_are_removed_after_the_grace_period(
    stack: Stack, provider: HetznerProvider, database_url: str
) -> None:
    ours = other_installation()
    settings = {"database_url": database_url, "installation": ours["hc-installation"], "orphan_grace_s": SHORT_GRACE_S}
    known = [await create_orphan_of(provider, KNOWN, **ours) for _ in range(2)]
    unknown = [await create_orphan(provider, **ours) for _ in range(2)]

    async with stack.deps(**settings) as deps:
        for command in LIFE:
            await deps.store.execute(KNOWN, command, deps.origin(KNOWN))
        swept = [await actions(deps) for _ in range(2)]

    assert swept == [dict.fromkeys(known + unknown, done) for done in ("watched", "removed")]


async def test_the_grace_period_of_unknown_servers_begins_once_they_are_few(
    stack: Stack, provider: HetznerProvider, database_url: str
) -> None:
    ours = other_installation()
    settings = {"database_url": database_url, "installation": ours["hc-installation"], "orphan_grace_s": SHORT_GRACE_S}

    async with stack.deps(**settings) as deps:
        first = await create_orphan(provider, **ours)
        assert await actions(deps) == {first: "watched"}
        second = await create_orphan(provider, **ours)
        assert await swept_and_alarmed(deps, 2, 2) == dict.fromkeys((first, second), "left alone: unknown to the log")
        await provider.delete_server(second)
        await stack.until(lambda: are_left(provider, ours, [first]))

        # It was seen before, and the grace period from then is long over.
        assert await actions(deps) == {first: "watched"}
        assert await actions(deps) == {first: "removed"}


async def test_remove_unaccounted_does_not_shorten_the_grace_period_of_servers_known_to_the_log(
    stack: Stack, provider: HetznerProvider, database_url: str
) -> None:
    ours = other_installation()
    known, unknown = await create_orphan_of(provider, KNOWN, **ours), await create_orphan(provider, **ours)
    settings = {"database_url": database_url, "installation": ours["hc-installation"]}

    async with stack.deps(**settings) as deps:
        for command in LIFE:
            await deps.store.execute(KNOWN, command, deps.origin(KNOWN))
        swept = await sweep(deps, dry_run=False, remove_unaccounted=True)

    assert {each.server_id: each.action for each in swept.findings} == {known: "watched", unknown: "removed"}
    await provider.delete_server(known)


async def actions(deps: Deps) -> dict[str, str]:
    """Sweep, and return the action for each server."""
    return {finding.server_id: finding.action for finding in (await sweep(deps, dry_run=False)).findings}


async def swept_and_alarmed(deps: Deps, unaccounted: int, listed: int) -> dict[str, str]:
    """Sweep, and return the action for each orphan. An alarm must have said how many servers are unknown to the log."""
    with capture_logs() as logs:
        swept = await sweep(deps, dry_run=False)
    assert not swept.is_complete
    (alarm,) = [entry for entry in logs if entry["event"] == "most_servers_unaccounted"]
    assert (alarm["log_level"], alarm["unaccounted"], alarm["listed"]) == ("error", unaccounted, listed)
    assert all(finding.kind == "orphan" for finding in swept.findings)
    return {finding.server_id: finding.action for finding in swept.findings}


async def are_left(provider: HetznerProvider, labels: dict[str, str], server_ids: list[str]) -> bool:
    return {server.id for server in await provider.find_servers(labels)} == set(server_ids)
