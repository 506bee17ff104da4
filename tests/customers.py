"""Customers whose instances have personal fields, for tests of erasures and restores."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace
from psycopg_pool import AsyncConnectionPool

from events import commands as c
from events import keys
from events.ids import instance_id_for
from events.keys import Keyring
from events.master_keys import MasterKeys
from events.state import TEARDOWN_STEPS
from events.store import EventStore
from hydracore.audit import erasing
from hydracore.audit.erasure_file import ErasureFile
from hydracore.cli import main
from hydracore.db.pool import open_pool
from tests import lifecycle
from tests.store_commands import NOW_MS, open_store, origin, request

MASTER_KEY = bytes(range(32))
EMAIL, PROMPT = "ada@example.com", "You know that Ada is ill."

#: Ada's key.
ADA_KEY = "SELECT wrapped_key FROM customer_key WHERE customer_id = 'ada'"
#: The number of sessions that wait for a lock in the database.
LOCK_WAITS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

_EVENTS = "SELECT type FROM event WHERE stream_id = %s ORDER BY version DESC LIMIT 1"


class World(NamedTuple):
    """`ada`: three instances of hers, the last one not deleted; `bob`: one of his."""

    url: str
    file: ErasureFile
    store: EventStore
    pool: AsyncConnectionPool
    ada: list[UUID]
    bob: UUID

    def run(self, *words: str, **environ: str) -> Result:
        return CliRunner().invoke(main, words, env=self.environ | environ)

    @property
    def environ(self) -> dict[str, str]:
        return {"HYDRACORE_DATABASE_URL": self.url, "HYDRACORE_ERASURE_FILE": str(self.file.path)}

    def erase(self, *words: str, **environ: str) -> Result:
        return self.run("audit", "erase-customer", "ada", *words, **environ)


@pytest.fixture(name="world")
async def world_fixture(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[World]:
    monkeypatch.setattr(keys, "CACHE_S", 0.0)
    monkeypatch.setattr(erasing, "APPEND_S", 0.0)
    file = ErasureFile(tmp_path / "erasures.jsonl")
    async with open_store(database_url) as (store, pool):
        keyring = Keyring(pool, master_keys=MasterKeys(MASTER_KEY))
        ada = [await create_sealed_instance(store, keyring, "ada", f"key {number}") for number in range(3)]
        bob = await create_sealed_instance(store, keyring, "bob", "key")
        for stream_id in (*ada[:2], bob):
            await delete_instance(store, stream_id)
        yield World(database_url, file, store, pool, ada, bob)


async def create_sealed_instance(
    store: EventStore, keyring: Keyring, customer: str, key: str, *, tenant: str = "acme"
) -> UUID:
    """An instance with an address and a prompt that are sealed."""
    whose = {"tenant_id": tenant, "customer_id": customer}
    stream_id = instance_id_for(**whose, idempotency_key=key)
    email = await keyring.seal(EMAIL, **whose, field="customer_email")
    prompt = await keyring.seal(PROMPT, **whose, field="system_prompt")
    await store.create(stream_id, replace(request(customer, key), tenant_id=tenant, customer_email=email), origin())
    await store.execute(stream_id, c.ChangeConfig(at_ms=NOW_MS, system_prompt=prompt), origin())
    return stream_id


async def delete_instance(store: EventStore, stream_id: UUID) -> None:
    for command in (lifecycle.delete(), *map(lifecycle.teardown, TEARDOWN_STEPS), lifecycle.finish()):
        await store.execute(stream_id, command, origin("worker"))


async def readable_fields(url: str, stream_id: UUID, customer: str, *, tenant: str = "acme") -> list[str]:
    """What a process that has just started can open of the instance's history."""
    async with open_pool(url, role="hydracore_app", application="test", size=1) as pool:
        async with pool.connection() as connection:
            statement = "SELECT payload FROM event WHERE stream_id = %s ORDER BY version"
            payloads = [payload for (payload,) in await (await connection.execute(statement, (stream_id,))).fetchall()]
        sealed = [
            (name, each[name]) for each in payloads for name in ("customer_email", "system_prompt") if name in each
        ]
        assert len(sealed) == 2, "the ciphertext is still there"
        keyring, whose = (
            Keyring(pool, master_keys=MasterKeys(MASTER_KEY)),
            {"tenant_id": tenant, "customer_id": customer},
        )
        texts = [await keyring.open(text, **whose, field=name) for name, text in sealed]
    return [text for text in texts if text is not None]


async def last_event(url: str, stream_id: UUID) -> str:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        row = await (await connection.execute(_EVENTS, (stream_id,))).fetchone()
    assert row is not None
    return row[0]
