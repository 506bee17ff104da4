"""The sweep against a real provider: what it removes, what it relabels, what it reports, and what it leaves alone."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from structlog.testing import capture_logs

from events.commands import AnyCommand
from events.ids import lane_of
from hydracore.settings import PACKAGED_CATALOGUE
from tests import lifecycle
from tests.orphan_servers import create_orphan, create_orphan_of, other_installation, record_instance
from tests.stack import Stack
from tests.sweeping import LONG_GRACE_S, SHORT_GRACE_S, backdate_first_miss, run_sweep_command, sweep_findings
from workers.broker import SWEEP
from workers.providers.hetzner import HetznerProvider
from workers.sweep import sweep
from workers.sweep_findings import NotCompared


async def is_gone(provider: HetznerProvider, server_id: str) -> bool:
    return await provider.get_server(server_id) is None


async def test_an_orphan_is_removed_at_its_second_sighting_after_the_grace_period(
    stack: Stack, provider: HetznerProvider
) -> None:
    server_id = await create_orphan(provider)

    assert await sweep_findings(stack, server_id, grace_s=SHORT_GRACE_S) == [("orphan", "watched")], "seen once"
    assert await sweep_findings(stack, server_id, grace_s=LONG_GRACE_S) == [("orphan", "watched")], "too young"
    assert not await is_gone(provider, server_id)

    assert await sweep_findings(stack, server_id, grace_s=SHORT_GRACE_S) == [("orphan", "removed")]
    await stack.until(lambda: is_gone(provider, server_id))
    assert not await sweep_findings(stack, server_id)


async def test_an_orphan_that_was_accounted_for_meanwhile_is_watched_again_from_the_start(
    stack: Stack, provider: HetznerProvider
) -> None:
    server_id = await create_orphan(provider)
    server = await provider.get_server(server_id)
    assert server is not None
    await sweep_findings(stack, server_id)

    await provider.set_labels(server_id, {**server.labels, "hc-installation": "another"})
    assert not await sweep_findings(stack, server_id)
    await provider.set_labels(server_id, server.labels)

    assert await sweep_findings(stack, server_id, grace_s=SHORT_GRACE_S) == [("orphan", "watched")]
    stack.cloudsim.call("POST", f"/_sim/servers/{server_id}/vanish")


async def test_servers_of_another_installation_or_without_our_labels_are_left_alone(
    stack: Stack, provider: HetznerProvider
) -> None:
    foreign = await create_orphan(provider, **{"hc-installation": "hydracore-staging"})
    bare = await create_orphan(provider)
    await provider.set_labels(bare, {"purpose": "database"})

    for _ in range(3):
        assert not await sweep_findings(stack, foreign, grace_s=SHORT_GRACE_S)
        assert not await sweep_findings(stack, bare, grace_s=SHORT_GRACE_S)

    for server_id in (foreign, bare):
        assert not await is_gone(provider, server_id)
        stack.cloudsim.call("POST", f"/_sim/servers/{server_id}/vanish")


async def test_a_server_that_is_being_created_is_never_treated_as_an_orphan(stack: Stack) -> None:
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "hold_after", name=f"hc-{instance_id}")
    await stack.create(key)
    await stack.until(stack.cloudsim.held)
    server = stack.server(instance_id)

    for _ in range(3):
        assert not await sweep_findings(stack, str(server["id"]), grace_s=SHORT_GRACE_S)

    stack.cloudsim.call("POST", "/_sim/release", {"all": True})
    await stack.until_status(instance_id, "running")
    assert stack.server(instance_id) == server


async def test_servers_of_a_provider_that_was_renamed_are_reported_and_left_alone(
    stack: Stack, provider: HetznerProvider, tmp_path: Path
) -> None:
    renamed = tmp_path / "catalogue.toml"
    packaged = PACKAGED_CATALOGUE.read_text()
    renamed.write_text(re.sub(r'(?<=providers\.)cloudsim|cloudsim(?= =)|(?<=")cloudsim(?=")', "renamed", packaged))
    held, held_id = stack.new_key()
    stack.cloudsim.fault("create_server", "hold_after", name=f"hc-{held_id}")
    await stack.create(held)
    unlabelled = stack.logged_server_id(await stack.running())
    await provider.set_labels(unlabelled, {"hc-installation": "hydracore"})
    await stack.until(stack.cloudsim.held)
    servers = [str(stack.server(held_id)["id"]), unlabelled]

    for server_id in servers * 2:
        seen = await sweep_findings(stack, server_id, grace_s=SHORT_GRACE_S, catalogue=str(renamed))
        assert seen == [("wrong_provider", "left alone: in the log its provider is cloudsim")]

    async with stack.deps(catalogue=str(renamed)) as deps:
        assert NotCompared("cloudsim", "not in the catalogue") in (await sweep(deps, dry_run=True)).not_compared
    assert not stack.rows("SELECT 1 FROM orphan WHERE server_id = ANY (%s)", servers)
    assert not any([await is_gone(provider, server_id) for server_id in servers])
    stack.cloudsim.call("POST", "/_sim/release", {"all": True})
    await stack.until_status(held_id, "running")


@pytest.mark.parametrize("taken", ["hc-instance", "hc-attempt", "hc-installation", "hc-intent"])
async def test_labels_that_were_changed_are_restored(stack: Stack, provider: HetznerProvider, taken: str) -> None:
    server_id = stack.logged_server_id(await stack.running())
    before = await provider.get_server(server_id)
    assert before is not None
    without = {key: value for key, value in before.labels.items() if key != taken} | {"mine": "too"}

    for changed in (without, without | {taken: "0123456789abcdef"}):
        await provider.set_labels(server_id, changed)
        assert await sweep_findings(stack, server_id) == [("wrong_labels", "labelled again")]
        after = await provider.get_server(server_id)
        assert after is not None
        assert after.labels == before.labels | {"mine": "too"}
        assert not await sweep_findings(stack, server_id)


async def test_a_server_is_relabelled_with_the_intent_of_the_attempt_it_was_made_for(
    stack: Stack, provider: HetznerProvider, database_url: str
) -> None:
    ours = other_installation()
    async with stack.deps(database_url=database_url, installation=ours["hc-installation"]) as deps:
        server_id = await create_orphan(provider, **ours)
        second = (
            lifecycle.failed(),
            lifecycle.discarded(),
            lifecycle.plan(2),
            lifecycle.created(2, server_id=server_id),
        )
        instance_id = await record_instance(deps, 0, *second)
        labels = ours | {"hc-instance": str(instance_id), "hc-attempt": "2"}
        await provider.set_labels(server_id, labels | {"hc-intent": lifecycle.token_hash(1)[:16]})

        found_first, found_then = [(await sweep(deps, dry_run=False)).findings for _ in range(2)]

    assert ([finding.action for finding in found_first], found_then) == (["labelled again"], [])
    server = await provider.get_server(server_id)
    assert server is not None
    assert server.labels == labels | {"hc-intent": lifecycle.token_hash(2)[:16]}
    await provider.delete_server(server_id)


MISREAD = ("misread", "left alone: the log assigns it to the instance, but the read table does not")


async def test_a_row_with_another_instance_s_server_changes_no_labels_and_removes_no_server(
    stack: Stack, provider: HetznerProvider
) -> None:
    """Of several rows with one server the sweep uses the last, but reads the log before it acts."""
    first, last = sorted([await stack.running(), await stack.running()], key=lambda each: (lane_of(each), each))
    servers = [stack.logged_server_id(instance_id) for instance_id in (first, last)]
    before = [await provider.get_server(server_id) for server_id in servers]
    name = "UPDATE instance SET server_id = %s WHERE id = %s RETURNING 1"
    assert stack.rows(name, servers[0], last)
    try:
        for _ in range(2):
            assert await sweep_findings(stack, servers[0], grace_s=SHORT_GRACE_S) == []
            assert await sweep_findings(stack, servers[1], grace_s=SHORT_GRACE_S) == [MISREAD]
    finally:
        assert stack.rows(name, servers[1], last)
    assert [await provider.get_server(server_id) for server_id in servers] == before


@pytest.mark.parametrize("of", ["the log has it", "the log waits for it"])
@pytest.mark.parametrize(
    "wrong",
    [
        "DELETE FROM instance",
        "UPDATE instance SET status = 'deleted'",
        "UPDATE instance SET server_id = '999'",
        "UPDATE instance SET server_id = NULL, status = 'failed'",
    ],
)
async def test_a_wrong_row_never_removes_a_server_that_the_log_has_or_waits_for(
    stack: Stack, provider: HetznerProvider, database_url: str, wrong: LiteralString, of: str
) -> None:
    server_id, swept = await swept_twice(
        stack,
        provider,
        database_url,
        lambda server_id: (lifecycle.created(server_id=server_id),) if of == "the log has it" else (),
        wrong,
    )

    assert swept == [[MISREAD], [MISREAD]]
    assert not await is_gone(provider, server_id)
    await provider.delete_server(server_id)


@pytest.mark.parametrize("then", [lifecycle.gave_up(), lifecycle.plan(2)], ids=["given up", "tried again"])
async def test_a_server_left_by_an_attempt_that_is_over_is_removed(
    stack: Stack, provider: HetznerProvider, database_url: str, then: AnyCommand
) -> None:
    server_id, swept = await swept_twice(
        stack,
        provider,
        database_url,
        lambda server_id: (lifecycle.created(server_id=server_id), lifecycle.failed(), lifecycle.discarded(), then),
        "SELECT",
    )

    assert swept == [[("orphan", "watched")], [("orphan", "removed")]]
    await stack.until(lambda: is_gone(provider, server_id))


async def test_a_server_made_by_a_create_that_was_refused_is_removed(
    stack: Stack, provider: HetznerProvider, database_url: str
) -> None:
    # As at a provider that refused the create, and then also to list servers.
    refused = (lifecycle.failed(nothing_made=True, retryable=False), lifecycle.discarded(), lifecycle.gave_up())
    server_id, swept = await swept_twice(stack, provider, database_url, lambda _: refused, "SELECT")

    assert swept == [[("orphan", "watched")], [("orphan", "removed")]]
    await stack.until(lambda: is_gone(provider, server_id))


async def swept_twice(
    stack: Stack,
    provider: HetznerProvider,
    database_url: str,
    life: Callable[[str], tuple[AnyCommand, ...]],
    wrong: LiteralString,
) -> tuple[str, list[list[tuple[str, str]]]]:
    """The id of a server whose labels name an instance with this `life`, and two sweeps after the statement `wrong`."""
    ours = other_installation()
    async with stack.deps(
        database_url=database_url, installation=ours["hc-installation"], orphan_grace_s=SHORT_GRACE_S
    ) as deps:
        server_id = await create_orphan(provider, **ours)
        instance_id = await record_instance(deps, 0, *life(server_id))
        await provider.set_labels(server_id, ours | {"hc-instance": str(instance_id), "hc-attempt": "1"})
        with psycopg.connect(database_url, autocommit=True) as owner:
            owner.execute(wrong)
        swept = [(await sweep(deps, dry_run=False)).findings for _ in range(2)]
    return server_id, [
        [(each.kind, each.action) for each in findings if each.server_id == server_id] for findings in swept
    ]


async def test_a_protected_server_does_not_prevent_the_sweep_of_other_servers(
    stack: Stack, provider: HetznerProvider
) -> None:
    instance_id = await stack.running()
    guarded, other = [await create_orphan_of(provider, instance_id) for _ in range(2)]
    lost = stack.logged_server_id(instance_id)
    stack.cloudsim.call("POST", f"/_sim/servers/{lost}/vanish")
    stack.cloudsim.fault("delete_server", "error", server_id=int(guarded), status=403, code="protected", times=None)

    await sweep_findings(stack, guarded, grace_s=SHORT_GRACE_S)
    assert backdate_first_miss(stack, lost)
    assert await sweep_findings(stack, guarded, grace_s=SHORT_GRACE_S) == [
        ("orphan", "could not be removed: protected")
    ]

    assert not await is_gone(provider, guarded)
    await stack.until(lambda: is_gone(provider, other))
    assert stack.has_happened(instance_id, "server_vanished")
    stack.cloudsim.call("POST", f"/_sim/servers/{guarded}/vanish")


async def test_a_dry_run_prints_findings_and_changes_nothing(stack: Stack, provider: HetznerProvider) -> None:
    orphan = await create_orphan(provider)
    mislabelled, lost = await stack.running(), await stack.running()
    await provider.set_labels(stack.logged_server_id(mislabelled), {"hc-installation": "hydracore"})
    stack.cloudsim.call("POST", f"/_sim/servers/{stack.logged_server_id(lost)}/vanish")
    changes = ["delete_server", "update_server"]
    before = [stack.cloudsim.requests(change) for change in changes]

    done = await asyncio.to_thread(run_sweep_command, stack.environ(orphan_grace_s=SHORT_GRACE_S), "--dry-run")
    as_json = await asyncio.to_thread(
        run_sweep_command, stack.environ(orphan_grace_s=SHORT_GRACE_S), "--dry-run", "--json"
    )

    assert (done.status, as_json.status) == (0, 0), done.stderr + as_json.stderr
    lines = done.stdout.splitlines()
    findings = {(one["kind"], one["server_id"]) for one in json.loads(as_json.stdout)["findings"]}
    for kind, server_id in (
        ("orphan", orphan),
        ("wrong_labels", stack.logged_server_id(mislabelled)),
        ("vanished", stack.logged_server_id(lost)),
    ):
        assert [line for line in lines if kind in line and f"{server_id}" in line], done.stdout
        assert (kind, f"{server_id}") in findings
    assert [stack.cloudsim.requests(change) for change in changes] == before
    assert not stack.rows("SELECT 1 FROM orphan WHERE server_id = %s", orphan)
    assert not stack.rows("SELECT 1 FROM missing_server WHERE server_id = %s", stack.logged_server_id(lost))
    assert not stack.has_happened(lost, "server_vanished")
    stack.cloudsim.call("POST", f"/_sim/servers/{orphan}/vanish")
    stack.hint(SWEEP)
    await stack.until(lambda: backdate_first_miss(stack, stack.logged_server_id(lost)))
    stack.hint(SWEEP)
    await stack.until_status(lost, "error")


async def test_an_orphan_whose_label_is_no_instance_id_is_logged_without_one(
    stack: Stack, provider: HetznerProvider
) -> None:
    ours = other_installation()
    server_id = await create_orphan(provider, **ours, **{"hc-instance": "nobody"})

    async with stack.deps(installation=ours["hc-installation"]) as deps:
        with capture_logs() as logs:
            await sweep(deps, dry_run=True)

    said = [(line["server_id"], line["instance_id"]) for line in logs if line["event"] == "sweep_found"]
    assert (server_id, None) in said
    await provider.delete_server(server_id)


async def test_a_sweep_that_cannot_list_the_servers_of_a_provider_in_use_says_so_and_fails(stack: Stack) -> None:
    await stack.running()
    stack.cloudsim.fault("list_servers", "error", status=401, code="unauthorized")

    async with stack.deps() as deps:
        refused = await sweep(deps, dry_run=True)
    done = await asyncio.to_thread(run_sweep_command, stack.environ(cloudsim_token=""), "--dry-run")

    hetzner = NotCompared("hetzner", "HYDRACORE_HETZNER_TOKEN not set", needed=False)
    assert (refused.not_compared, refused.is_complete) == ([hetzner, NotCompared("cloudsim", "unauthorized")], False)
    assert (done.status, done.stdout.splitlines()) == (
        1,
        [
            "provider=hetzner could not be checked: HYDRACORE_HETZNER_TOKEN not set (the log has no instances there)",
            "provider=cloudsim could not be checked: HYDRACORE_CLOUDSIM_TOKEN not set",
            "0 found",
        ],
    )
