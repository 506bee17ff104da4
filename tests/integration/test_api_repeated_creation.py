"""Repeated orders that could not be made anew any more, on a real server and a real PostgreSQL."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import LiteralString
from uuid import UUID

import psycopg
import pytest

from events import keys
from hydracore.api.runtime_document import RuntimeDocuments
from hydracore.api.vault import Vault
from hydracore.settings import PACKAGED_CATALOGUE
from tests.api_server import Api, running_api
from tests.log_check import check_log

ORDER = {"region_id": "local", "tier_id": "performance", "preset_id": "research_assistant", "idempotency_key": "k"}
NAMED = ORDER | {"user_display_name": "Ann"}
ANOTHER_REQUEST = {"detail": "This idempotency key was used with another request"}


@pytest.fixture
async def api(database_url: str, redis_url: str) -> AsyncGenerator[Api]:
    async with running_api(database_url, redis_url) as running:
        yield running


async def test_a_repeated_order_is_answered_even_if_the_catalogue_has_dropped_its_choices(
    api: Api, database_url: str, redis_url: str, owner_conn: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    smaller = tmp_path / "catalogue.toml"
    smaller.write_text(
        PACKAGED_CATALOGUE.read_text()
        .replace("[regions.local]", "[regions.here]")
        .replace("[tiers.performance]", "[tiers.large]")
        .replace("[presets.research_assistant]", "[presets.researcher]")
    )
    answer = await api.client.post("/v1/instances", json=ORDER, headers=api.token())
    before = await check_log(owner_conn)

    async with running_api(database_url, redis_url, catalogue=smaller) as later:
        again = await later.client.post("/v1/instances", json=ORDER, headers=later.token())
        other = await later.client.post("/v1/instances", json=ORDER | {"agent_name": "Ada"}, headers=later.token())
        malformed = await later.client.post("/v1/instances", json=ORDER | {"agent_name": 5}, headers=later.token())
        new = [
            await later.client.post("/v1/instances", json=ORDER, headers=later.token(tenant="other")),
            await later.client.post("/v1/instances", json=ORDER, headers=later.token(user="bob")),
            await later.client.post("/v1/instances", json=ORDER | {"idempotency_key": "k2"}, headers=later.token()),
        ]

    assert (again.status_code, again.content) == (202, answer.content)
    assert (other.status_code, other.json()) == (409, ANOTHER_REQUEST)
    wrong = [["body", name] for name in ("agent_name", "preset_id", "region_id", "tier_id")]
    assert (malformed.status_code, [each["loc"] for each in malformed.json()["detail"]]) == (422, wrong)
    for refused in new:
        assert (refused.status_code, [each["loc"] for each in refused.json()["detail"]]) == (422, wrong[1:])
    assert await check_log(owner_conn) == before


async def test_an_agent_gets_an_empty_preset_for_one_that_the_catalogue_has_dropped(
    api: Api, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    without = tmp_path / "catalogue.toml"
    without.write_text(PACKAGED_CATALOGUE.read_text().replace("[presets.research_assistant]", "[presets.researcher]"))
    answer = await api.client.post("/v1/instances", json=ORDER, headers=api.token())
    state = await api.parts.store.load(UUID(answer.json()["instance_id"]))
    assert state is not None

    async with running_api(database_url, redis_url, catalogue=without) as later:
        parts = later.parts
        documents = RuntimeDocuments(
            pool=parts.pool,
            vault=Vault(parts.keyring),
            catalogue=parts.catalogue,
            settings=parts.settings,
            now_ms=parts.now_ms,
        )
        document = await documents.build(state)

    name = ORDER["preset_id"]
    assert document["preset"] == {"id": name, "name": name, "system_prompt": "", "skills": []}


@pytest.mark.parametrize(
    ("lose", "status"),
    [
        ("UPDATE customer_key SET wrapped_key = NULL, destroyed_at = now()", 409),
        (r"UPDATE customer_key SET wrapped_key = '\x00'", 500),
    ],
    ids=["erased", "damaged"],
)
async def test_a_repeated_order_is_answered_even_if_the_customer_s_key_is_erased_or_damaged(
    api: Api,
    owner_conn: psycopg.AsyncConnection,
    monkeypatch: pytest.MonkeyPatch,
    lose: LiteralString,
    status: int,
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", 0)
    ann = api.token()
    answer = await api.client.post("/v1/instances", json=NAMED, headers=ann)
    await owner_conn.execute(lose)
    before = await check_log(owner_conn)

    again = await api.client.post("/v1/instances", json=NAMED, headers=ann)
    other = await api.client.post("/v1/instances", json=NAMED | {"user_display_name": "Eve"}, headers=ann)
    new = await api.client.post("/v1/instances", json=NAMED | {"idempotency_key": "k2"}, headers=ann)

    assert (again.status_code, again.content) == (202, answer.content)
    assert (other.status_code, other.json()) == (409, ANOTHER_REQUEST)
    assert new.status_code == status
    assert new.json() != ANOTHER_REQUEST
    assert await check_log(owner_conn) == before
