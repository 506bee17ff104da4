"""Keys that are lost or damaged: texts sealed with them are null, and a key that a standby lacks is put back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from structlog.testing import capture_logs

from events import keys
from events.errors import CustomerErased, KeyUnreadable
from events.keys import Keyring
from tests.keyrings import ADA, EMAIL, destroy_keys, fresh_keyring, keyring, pool

__all__ = ["fresh_keyring", "keyring", "pool"]


async def test_texts_sealed_with_a_lost_key_are_unreadable_and_reported_once_per_customer(
    keyring: Keyring, fresh_keyring: Keyring, owner_conn: AsyncConnection
) -> None:
    old = [await keyring.seal(EMAIL, **ADA) for _ in range(2)]
    # As after a restore whose backup of the keys is older than that of the log.
    await owner_conn.execute("DELETE FROM customer_key")
    new = await fresh_keyring.seal("ada@example.org", **ADA)

    with capture_logs() as lines:
        texts = [await fresh_keyring.open(each, **ADA) for each in (*old, new, *old)]

    assert texts == [None, None, "ada@example.org", None, None]
    assert lines == [{"event": "sealed_field_unreadable", "log_level": "warning", **ADA}]


async def test_a_key_that_a_standby_lacks_is_put_back_by_the_process_that_used_it(
    keyring: Keyring, fresh_keyring: Keyring, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", -1.0)
    sealed = await keyring.seal(EMAIL, **ADA)
    await owner_conn.execute("DELETE FROM customer_key")

    with capture_logs() as lines:
        assert await keyring.open(sealed, **ADA) == EMAIL

    assert await fresh_keyring.open(sealed, **ADA) == EMAIL
    assert [(one["event"], one["customer_id"]) for one in lines] == [("customer_key_put_back", "ada")]


async def test_a_new_customer_is_not_taken_for_an_erased_one_during_a_failover(
    pool: AsyncConnectionPool, keyring: Keyring, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    borrow = pool.connection

    @asynccontextmanager
    async def connection(timeout: float | None = None) -> AsyncGenerator[AsyncConnection]:  # noqa: ASYNC109 - as a pool has it
        # What was written on the previous connection is lost.
        await owner_conn.execute("DELETE FROM customer_key")
        async with borrow(timeout) as connected:
            yield connected

    monkeypatch.setattr(pool, "connection", connection)

    sealed = await keyring.seal(EMAIL, **ADA)

    monkeypatch.undo()
    assert await keyring.open(sealed, **ADA) == EMAIL


async def test_a_key_that_was_destroyed_or_replaced_is_not_put_back(
    keyring: Keyring, fresh_keyring: Keyring, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", -1.0)
    sealed = await keyring.seal(EMAIL, **ADA)
    await owner_conn.execute("DELETE FROM customer_key")
    new = await fresh_keyring.seal("ada@example.org", **ADA)
    assert [await keyring.open(each, **ADA) for each in (sealed, new)] == [None, "ada@example.org"]

    await destroy_keys(owner_conn)
    await keyring.ensure_stored(tenant_id="acme", customer_id="ada")
    assert await fresh_keyring.open(new, **ADA) is None
    await owner_conn.execute("DELETE FROM customer_key")
    await keyring.ensure_stored(tenant_id="acme", customer_id="ada")
    assert await (await owner_conn.execute("SELECT wrapped_key FROM customer_key")).fetchall() == [(None,)]


@pytest.mark.parametrize(
    "lacking",
    ["DELETE FROM customer_key", "UPDATE customer_key SET wrapped_key = kept, destroyed_at = NULL FROM old"],
    ids=["the keys", "the erasure"],
)
async def test_a_customer_known_to_be_erased_stays_erased_if_a_standby_lacks_the_erasure(
    keyring: Keyring, fresh_keyring: Keyring, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", -1.0)
    sealed = await keyring.seal(EMAIL, **ADA)
    await owner_conn.execute("CREATE TABLE old AS SELECT wrapped_key AS kept FROM customer_key")
    await destroy_keys(owner_conn)
    assert await keyring.open(sealed, **ADA) is None
    await owner_conn.execute(lacking.encode())

    with capture_logs() as lines, pytest.raises(CustomerErased):
        await keyring.seal(EMAIL, **ADA)

    assert [(one["event"], one["log_level"]) for one in lines] == [("erased_keys_destroyed_again", "warning")]
    assert await fresh_keyring.open(sealed, **ADA) is None
    with pytest.raises(CustomerErased):
        await fresh_keyring.seal(EMAIL, **ADA)


@pytest.mark.parametrize(
    ("owner", "damage"),
    [
        ("ada", "UPDATE customer_key SET wrapped_key = ''"),
        ("ada", "UPDATE customer_key SET wrapped_key = '\\x01'"),
        ("ada", "UPDATE customer_key SET wrapped_key = substr(wrapped_key, 2)"),
        ("bob", "UPDATE customer_key SET customer_id = 'ada'"),
    ],
    ids=["empty", "too short", "truncated", "another customer's"],
)
async def test_a_damaged_key_makes_texts_null_and_is_reported_once(
    keyring: Keyring, fresh_keyring: Keyring, owner_conn: AsyncConnection, owner: str, damage: str
) -> None:
    sealed = await keyring.seal(EMAIL, **ADA | {"customer_id": owner})
    await owner_conn.execute(damage.encode())

    with capture_logs() as lines:
        texts = [await fresh_keyring.open(sealed, **ADA) for _ in range(2)]
    with pytest.raises(KeyUnreadable, match="The key of customer ada cannot be decrypted"):
        await fresh_keyring.seal(EMAIL, **ADA)

    assert (texts, fresh_keyring.cached_text(sealed, **ADA)) == ([None, None], None)
    assert [(one["event"], one["customer_id"]) for one in lines] == [("customer_key_unreadable", "ada")]
