"""Sealed fields can be read only with the master key and the customer's key, and only as this field of this customer."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events import keys, sealed_text, wrapping
from events.errors import CustomerErased, KeyUnreadable, MasterKeyWrong
from events.keys import Keyring
from events.master_keys import MasterKeys
from events.types import Sealed
from tests.keyrings import ADA, EMAIL, MASTER_KEY, OTHER_MASTER_KEY, destroy_keys, fresh_keyring, keyring, pool
from tests.waiting import until

__all__ = ["fresh_keyring", "keyring", "pool"]

#: How long texts stay cached in tests of what else bounds the cache: longer than any stall of the machine.
AN_HOUR_S = 3600


@pytest.mark.parametrize(
    "text", ["", EMAIL, "Ådä \N{SNOWMAN} \0 \n", "x" * 100_000], ids=["empty", "plain", "odd", "huge"]
)
async def test_a_sealed_text_can_be_opened_by_any_process(keyring: Keyring, fresh_keyring: Keyring, text: str) -> None:
    sealed = await keyring.seal(text, **ADA)

    assert await keyring.open(sealed, **ADA) == text
    assert await fresh_keyring.open(sealed, **ADA) == text


async def test_short_opened_texts_are_cached_and_long_ones_are_not(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", AN_HOUR_S)
    short, long = await keyring.seal(EMAIL, **ADA), await keyring.seal("x" * 100_000, **ADA)

    await keyring.open(short, **ADA)
    await keyring.open(long, **ADA)

    found = keyring.cached_text(short, **ADA)
    assert found is not None
    assert found.text == EMAIL
    assert time.monotonic() < found.until_s <= time.monotonic() + AN_HOUR_S
    assert keyring.cached_text(long, **ADA) is None


async def test_the_number_of_cached_texts_of_one_customer_is_bounded(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", AN_HOUR_S)
    monkeypatch.setattr(keys, "_TEXTS_MAX", 3)
    texts = [await keyring.seal(EMAIL, **ADA) for _ in range(10)]

    for sealed in texts:
        await keyring.open(sealed, **ADA)

    cached = [sealed for sealed in texts if keyring.cached_text(sealed, **ADA) is not None]
    assert 0 < len(cached) <= 3
    assert cached[-1] == texts[-1]


async def test_the_bytes_of_cached_texts_of_all_customers_are_bounded(
    keyring: Keyring, pool: AsyncConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "TEXTS_BYTES_MAX", 100_000)
    monkeypatch.setattr(keys, "CACHE_S", AN_HOUR_S)
    ring = Keyring(pool, master_keys=MasterKeys(MASTER_KEY))
    customers = [ADA | {"customer_id": f"c{number}"} for number in range(10)]
    sealed = [(who, await keyring.seal("x" * 700, **who)) for who in customers for _ in range(20)]

    for who, text in sealed:
        assert await ring.open(text, **who) == "x" * 700
        assert ring.cached_text(text, **who) is not None

    cached = [ring.cached_text(text, **who) is not None for who, text in sealed]
    assert cached == sorted(cached)
    assert 20 <= sum(cached) <= 60


async def test_the_record_of_customers_whose_unreadable_keys_were_reported_is_bounded(
    pool: AsyncConnectionPool, keyring: Keyring, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_CUSTOMERS_MAX", 2)
    customers = [f"customer-{number}" for number in range(5)]
    for customer in customers:
        await keyring.seal(EMAIL, tenant_id="acme", customer_id=customer, field="customer_email")
    await owner_conn.execute("UPDATE customer_key SET wrapped_key = 'damaged'")
    fresh_keyring = Keyring(pool, master_keys=MasterKeys(MASTER_KEY))

    for customer in customers:
        with pytest.raises(KeyUnreadable):
            await fresh_keyring.seal(EMAIL, tenant_id="acme", customer_id=customer, field="customer_email")

    assert 0 < len(fresh_keyring._reported) <= 2


async def test_sealing_a_text_twice_gives_different_results_without_its_content(keyring: Keyring) -> None:
    one, two = await keyring.seal(EMAIL, **ADA), await keyring.seal(EMAIL, **ADA)

    assert one != two
    assert one.startswith("v1.")
    assert "ada" not in one


@pytest.mark.parametrize(
    "change", [{"tenant_id": "evil"}, {"customer_id": "eve"}, {"field": "user_display_name"}], ids=str
)
async def test_a_sealed_text_is_bound_to_its_tenant_customer_and_field(
    keyring: Keyring, fresh_keyring: Keyring, change: dict[str, str]
) -> None:
    sealed = await keyring.seal(EMAIL, **ADA)
    await keyring.seal("their own", **ADA | change)
    assert await keyring.open(sealed, **ADA) == EMAIL

    # Neither a process that has just opened it for the right customer nor another may open it for a wrong one.
    for ring in (keyring, fresh_keyring):
        assert await ring.open(sealed, **ADA | change) is None


async def test_customers_whose_concatenated_tenant_and_id_are_equal_are_distinct(keyring: Keyring) -> None:
    sealed = await keyring.seal(EMAIL, tenant_id="ab", customer_id="c", field="f")
    await keyring.seal(EMAIL, tenant_id="a", customer_id="bc", field="f")

    assert await keyring.open(sealed, tenant_id="a", customer_id="bc", field="f") is None


@pytest.mark.parametrize(
    "sealed", ["", EMAIL, "v1.", "v1.AAAA", "v1.!!!!", "v1.ä", "v2.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
)
async def test_opening_a_text_that_was_never_sealed_is_an_error(keyring: Keyring, sealed: str) -> None:
    await keyring.seal(EMAIL, **ADA)

    with pytest.raises(ValueError, match="Not a sealed field"):
        await keyring.open(sealed, **ADA)


async def test_a_sealed_text_that_was_tampered_with_cannot_be_opened(keyring: Keyring) -> None:
    sealed = await keyring.seal(EMAIL, **ADA)
    middle = len(sealed) // 2
    other = "A" if sealed[middle] != "A" else "B"

    assert await keyring.open(sealed[:middle] + other + sealed[middle + 1 :], **ADA) is None


async def test_the_database_contains_no_unwrapped_customer_key(keyring: Keyring, owner_conn: AsyncConnection) -> None:
    sealed = await keyring.seal(EMAIL, **ADA)

    ((wrapped,),) = await (await owner_conn.execute("SELECT wrapped_key FROM customer_key")).fetchall()

    with pytest.raises(ValueError, match="cannot be decrypted"):
        sealed_text.decrypt(keys.AESGCM(wrapped[:32]), sealed, bound_to=wrapping.bind(*ADA.values()))


async def test_concurrent_processes_agree_on_one_key_for_a_new_customer(
    pool: AsyncConnectionPool, owner_conn: AsyncConnection
) -> None:
    rings = [Keyring(pool, master_keys=MasterKeys(MASTER_KEY)) for _ in range(4)]
    customers = [{**ADA, "customer_id": f"c{number}"} for number in range(10)]

    sealed = await asyncio.gather(*(ring.seal(EMAIL, **who) for who in customers for ring in rings))

    texts = await asyncio.gather(
        *(
            ring.open(text, **who)
            for who, start in zip(customers, range(0, len(sealed), len(rings)), strict=True)
            for text in sealed[start : start + len(rings)]
            for ring in rings
        )
    )
    assert set(texts) == {EMAIL}
    count = await owner_conn.execute("SELECT count(*) FROM customer_key")
    assert await count.fetchone() == (len(customers),)


# --- erasure ---------------------------------------------------------------------------------------------------------


async def test_a_text_of_an_erased_customer_cannot_be_opened(
    keyring: Keyring, fresh_keyring: Keyring, owner_conn: AsyncConnection
) -> None:
    sealed = await keyring.seal(EMAIL, **ADA)

    await destroy_keys(owner_conn)

    assert await fresh_keyring.open(sealed, **ADA) is None


async def test_nothing_can_be_sealed_for_an_erased_customer(
    keyring: Keyring, fresh_keyring: Keyring, owner_conn: AsyncConnection
) -> None:
    await keyring.seal(EMAIL, **ADA)
    await destroy_keys(owner_conn)

    with pytest.raises(CustomerErased, match="ada was erased"):
        await fresh_keyring.seal(EMAIL, **ADA)


async def test_an_erasure_takes_effect_within_5_s_in_a_process_that_had_cached_a_text(
    keyring: Keyring, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = await keyring.seal(EMAIL, **ADA)
    assert await keyring.open(sealed, **ADA) == EMAIL

    await destroy_keys(owner_conn)
    in_5_s = time.monotonic() + 5
    monkeypatch.setattr(keys, "time", SimpleNamespace(monotonic=lambda: in_5_s))

    assert keyring.cached_text(sealed, **ADA) is None
    assert await keyring.open(sealed, **ADA) is None
    assert not any(customer.opened for customer in keyring._customers), "no plain text of an erased customer is kept"
    with pytest.raises(CustomerErased):
        await keyring.seal(EMAIL, **ADA)


async def test_the_age_of_a_cached_text_counts_from_the_query_and_not_from_its_answer(
    keyring: Keyring, fresh_keyring: Keyring, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", AN_HOUR_S)
    sealed = await keyring.seal(EMAIL, **ADA)
    async with owner_conn.transaction():
        await owner_conn.execute("LOCK TABLE customer_key IN ACCESS EXCLUSIVE MODE")
        opening = asyncio.create_task(fresh_keyring.open(sealed, **ADA))

        async def asked() -> bool:
            waits = await owner_conn.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
            return await waits.fetchone() == (True,)

        await until(asked)
        asked_s = time.monotonic()

    assert await opening == EMAIL
    found = fresh_keyring.cached_text(sealed, **ADA)
    assert found is not None
    assert found.until_s < asked_s + AN_HOUR_S


async def test_a_text_of_a_customer_without_a_key_cannot_be_opened(keyring: Keyring) -> None:
    assert await keyring.open(Sealed("v1.AAAA"), **ADA) is None


async def test_a_master_key_that_opens_only_few_customer_keys_is_refused_as_wrong(
    pool: AsyncConnectionPool, keyring: Keyring, owner_conn: AsyncConnection
) -> None:
    wrong = Keyring(pool, master_keys=MasterKeys(OTHER_MASTER_KEY))
    await wrong.check()
    for customer in ("ann", "bob", "cid"):
        await keyring.seal(EMAIL, **ADA | {"customer_id": customer})
    await wrong.seal(EMAIL, **ADA | {"customer_id": "dan"})

    await keyring.check()
    with pytest.raises(MasterKeyWrong, match="it decrypts only 1 of 4 customers' keys"):
        await wrong.check()
    await destroy_keys(owner_conn)
    await wrong.check()


# --- another master key ----------------------------------------------------------------------------------------------


async def test_a_former_master_key_opens_existing_customer_keys_and_wraps_no_new_ones(
    pool: AsyncConnectionPool, keyring: Keyring
) -> None:
    bob = ADA | {"customer_id": "bob"}
    old = await keyring.seal(EMAIL, **ADA)
    both = Keyring(pool, master_keys=MasterKeys(OTHER_MASTER_KEY, [MASTER_KEY]))
    new, of_bob = await both.seal(EMAIL, **ADA), await both.seal(EMAIL, **bob)

    await both.check()
    assert [await both.open(text, **ADA) for text in (old, new)] == [EMAIL] * 2
    # For a process that does not have the new master key yet.
    assert await keyring.open(new, **ADA) == EMAIL
    assert await keyring.open(of_bob, **bob) is None
    alone = Keyring(pool, master_keys=MasterKeys(OTHER_MASTER_KEY))
    assert await alone.open(of_bob, **bob) == EMAIL
    assert await alone.open(new, **ADA) is None


async def test_a_master_key_that_opens_only_the_newest_customer_keys_is_refused_as_wrong(
    pool: AsyncConnectionPool, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "SAMPLE_SIZE", 2)
    both = Keyring(pool, master_keys=MasterKeys(OTHER_MASTER_KEY, [MASTER_KEY]))
    for ring, tenant in ((keyring, "acme"), (both, "zeta")):
        for customer in ("ann", "bob"):
            await ring.seal(EMAIL, tenant_id=tenant, customer_id=customer, field="customer_email")

    await both.check()
    with pytest.raises(MasterKeyWrong, match="only 0 of 2 customers' keys that were tried"):
        await Keyring(pool, master_keys=MasterKeys(OTHER_MASTER_KEY)).check()


# --- fingerprints ----------------------------------------------------------------------------------------------------


async def test_equal_requests_have_equal_fingerprints_which_depend_on_the_master_key(
    pool: AsyncConnectionPool, keyring: Keyring, fresh_keyring: Keyring
) -> None:
    wrong = Keyring(pool, master_keys=MasterKeys(OTHER_MASTER_KEY))

    assert keyring.fingerprint(b"{}") == fresh_keyring.fingerprint(b"{}")
    assert keyring.fingerprint(b"{}") != keyring.fingerprint(b"{ }")
    assert keyring.fingerprint(b"{}") != wrong.fingerprint(b"{}")


async def test_fingerprints_include_those_made_with_former_master_keys(
    pool: AsyncConnectionPool, keyring: Keyring
) -> None:
    both = Keyring(pool, master_keys=MasterKeys(OTHER_MASTER_KEY, [MASTER_KEY]))

    assert both.fingerprints(b"{}") == (both.fingerprint(b"{}"), keyring.fingerprint(b"{}"))
    assert both.fingerprint(b"{}") != keyring.fingerprint(b"{}")
