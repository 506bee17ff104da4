"""Instances for which there is no place: whoever asked for one learns of it, and it can be deleted."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from events.ids import lane_of
from hydracore.settings import PACKAGED_CATALOGUE
from tests import lives
from tests.stack import Stack
from workers.advance import advance
from workers.deps import Deps

ADA = lives.instance_id()
Catalogue = Callable[[str], str]

SEEN = "SELECT status, error_code FROM instance WHERE lane = %s AND id = %s"
TROUBLE = "SELECT code, failures FROM attention WHERE lane = %s AND instance_id = %s"
TAKE_ALL_ADDRESSES = """
INSERT INTO reservation (kind, value, instance_id, version, reserved_at)
SELECT 'vpn_ip', '10.9.0.' || n, gen_random_uuid(), 1, now() FROM generate_series(0, 255) n
"""


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        (lambda text: text.replace("[regions.local]", "[regions.elsewhere]"), "no_placement"),
        (lambda text: text.replace("tiers.starter", "tiers.beginner"), "no_placement"),
        (lambda text: text.replace("127.64.0.0/10", "10.9.0.0/24"), "no_address"),
    ],
    ids=["the region is gone", "the tier is gone", "the network is full"],
)
async def test_what_has_no_place_fails_when_a_boot_would_have_and_can_be_deleted(
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
        await deps.store.execute(ADA, lives.request(at_ms=deps.now_ms()), deps.origin(ADA))
        await advance(deps, ADA)
        assert await row(SEEN) == ("pending", None)
        assert await row(TROUBLE) == (code, 1)

    async with deps_of(boot_timeout_s="0.001") as deps:
        await advance(deps, ADA)
        assert await row(SEEN) == ("failed", code)
        await deps.store.execute(ADA, lives.delete(), deps.origin(ADA))
        await advance(deps, ADA)

    assert await row(SEEN) == ("deleted", None)
