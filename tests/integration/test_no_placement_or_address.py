"""Instances without a placement or an address fail and can be deleted. An address that is just taken is not used."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from structlog.testing import capture_logs

from events.ids import lane_of
from hydracore.settings import PACKAGED_CATALOGUE
from tests import lifecycle
from tests.locked_lanes import is_treated_as_locked, lock_lanes
from tests.stack import Stack
from workers.advance import advance
from workers.deps import Deps
from workers.placement import free_address

ADA = lifecycle.instance_id()
Catalogue = Callable[[str], str]

SEEN = "SELECT status, error_code FROM instance WHERE lane = %s AND id = %s"
TROUBLE = "SELECT code, failures FROM attention WHERE lane = %s AND instance_id = %s"
TAKE_ALL_ADDRESSES = """
INSERT INTO reservation (kind, value, instance_id, version, reserved_at)
SELECT 'vpn_ip', '10.9.0.' || n, gen_random_uuid(), 1, now() FROM generate_series(0, 255) n
"""
TAKE_ADDRESS = "INSERT INTO reservation VALUES ('vpn_ip', %s, gen_random_uuid(), 1, now())"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        (lambda text: text.replace("[regions.local]", "[regions.elsewhere]"), "no_placement"),
        (lambda text: text.replace("tiers.starter", "tiers.beginner"), "no_placement"),
        (lambda text: text.replace("127.64.0.0/10", "10.9.0.0/24"), "no_address"),
    ],
    ids=["the region is gone", "the tier is gone", "the network is full"],
)
async def test_an_order_without_placement_or_address_fails_after_the_boot_timeout_and_can_be_deleted(
    stack: Stack,
    owner_conn: psycopg.AsyncConnection,
    database_url: str,
    tmp_path: Path,
    *,
    changed: Catalogue,
    code: str,
) -> None:
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text(changed(PACKAGED_CATALOGUE.read_text()))
    await owner_conn.execute(TAKE_ALL_ADDRESSES)

    def deps_of(**settings: str) -> AbstractAsyncContextManager[Deps]:
        return stack.deps(database_url=database_url, catalogue=str(catalogue), **settings)

    async def row(statement: LiteralString) -> tuple[object, ...] | None:
        return await (await owner_conn.execute(statement, (lane_of(ADA), ADA))).fetchone()

    async with deps_of() as deps:
        await deps.store.execute(ADA, lifecycle.request(at_ms=deps.now_ms()), deps.origin(ADA))
        await advance(deps, ADA)
        assert await row(SEEN) == ("pending", None)
        assert await row(TROUBLE) == (code, 1)

    async with deps_of(boot_timeout_s="0.001") as deps:
        await advance(deps, ADA)
        assert await row(SEEN) == ("failed", code)
        await deps.store.execute(ADA, lifecycle.delete(), deps.origin(ADA))
        await advance(deps, ADA)

    assert await row(SEEN) == ("deleted", None)


async def test_an_address_that_another_instance_takes_during_planning_is_not_assigned(
    stack: Stack, owner_conn: psycopg.AsyncConnection, database_url: str
) -> None:
    async with stack.deps(database_url=database_url) as deps:
        state = (await deps.store.execute(ADA, lifecycle.request(at_ms=deps.now_ms()), deps.origin(ADA))).state
        address = await free_address(deps, state)
        stack.cloudsim.fault("create_server", "locked", name=f"hc-{ADA}", times=None)
        async with lock_lanes(database_url, [lane_of(ADA)]) as holder:
            planning = asyncio.create_task(advance(deps, ADA))
            await stack.until(lambda: is_treated_as_locked(deps.store, lane_of(ADA)))
            await owner_conn.execute(TAKE_ADDRESS, (address,))
            await holder.rollback()
        with capture_logs() as said:
            await planning
        planned = await deps.store.load(ADA)

    assert planned is not None
    assert (planned.status, planned.vpn_ip == address) == ("provisioning", False)
    assert [line["code"] for line in said if line["event"] == "step_failed"] == ["locked"]
