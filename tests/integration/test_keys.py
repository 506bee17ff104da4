"""Sealed fields: readable by whoever has the master key and the customer's key, for that customer and field, and by nobody else."""

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
from tests.keyrings import ADA, EMAIL, MASTER_KEY, OTHER_MASTER_KEY, erase, fresh, keyring, pool
from tests.waiting import until

__all__ = ["fresh", "keyring", "pool"]

#: How long is remembered where a test is of what else bounds it: no stall of the machine is as long.
AN_HOUR_S = 3600


@pytest.mark.parametrize(
    "text", ["", EMAIL, "Ådä \N{SNOWMAN} \0 \n", "x" * 100_000], ids=["empty", "plain", "odd", "huge"]
)
async def test_what_was_sealed_is_opened_again_by_any_process(keyring: Keyring, fresh: Keyring, text: str) -> None:
    sealed = await keyring.seal(text, **ADA)

    assert await keyring.open(sealed, **ADA) == text
    assert await fresh.open(sealed, **ADA) == text


async def test_short_texts_are_remembered_and_long_ones_are_not(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", AN_HOUR_S)
    short, long = await keyring.seal(EMAIL, **ADA), await keyring.seal("x" * 100_000, **ADA)

    await keyring.open(short, **ADA)
    await keyring.open(long, **ADA)

    recalled = keyring.cached_text(short, **ADA)
    assert recalled is not None
    assert recalled.text == EMAIL
    assert time.monotonic() < recalled.until_s <= time.monotonic() + AN_HOUR_S
    assert keyring.cached_text(long, **ADA) is None


async def test_so_many_texts_of_one_customer_are_remembered_and_no_more(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", AN_HOUR_S)
    monkeypatch.setattr(keys, "_TEXTS_MAX", 3)
    texts = [await keyring.seal(EMAIL, **ADA) for _ in range(10)]

    for sealed in texts:
        await keyring.open(sealed, **ADA)

    remembered = [sealed for sealed in texts if keyring.cached_text(sealed, **ADA) is not None]
    assert 0 < len(remembered) <= 3
    assert remembered[-1] == texts[-1]


async def test_what_is_remembered_of_all_customers_together_is_bounded(
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

    remembered = [ring.cached_text(text, **who) is not None for who, text in sealed]
    assert remembered == sorted(remembered)
    assert 20 <= sum(remembered) <= 60


async def test_of_whom_it_was_said_that_something_does_not_open_is_bounded(
    pool: AsyncConnectionPool, keyring: Keyring, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_CUSTOMERS_MAX", 2)
    customers = [f"customer-{number}" for number in range(5)]
    for customer in customers:
        await keyring.seal(EMAIL, tenant_id="acme", customer_id=customer, field="customer_email")
    await owner_conn.execute("UPDATE customer_key SET wrapped_key = 'damaged'")
    fresh = Keyring(pool, master_keys=MasterKeys(MASTER_KEY))

    for customer in customers:
        with pytest.raises(KeyUnreadable):
            await fresh.seal(EMAIL, tenant_id="acme", customer_id=customer, field="customer_email")

    assert 0 < len(fresh._reported) <= 2


async def test_a_sealed_text_shows_nothing_and_is_never_the_same_twice(keyring: Keyring) -> None:
    one, two = await keyring.seal(EMAIL, **ADA), await keyring.seal(EMAIL, **ADA)

    assert one != two
    assert one.startswith("v1.")
    assert "ada" not in one


@pytest.mark.parametrize(
    "change", [{"tenant_id": "evil"}, {"customer_id": "eve"}, {"field": "user_display_name"}], ids=str
)
async def test_a_text_is_bound_to_its_tenant_customer_and_field(
    keyring: Keyring, fresh: Keyring, change: dict[str, str]
) -> None:
    sealed = await keyring.seal(EMAIL, **ADA)
    await keyring.seal("their own", **ADA | change)
    assert await keyring.open(sealed, **ADA) == EMAIL

    # Neither a process that has just opened it for the right one nor another may open it for the wrong one.
    for ring in (keyring, fresh):
        assert await ring.open(sealed, **ADA | change) is None


async def test_parts_that_join_to_the_same_text_are_other_customers(keyring: Keyring) -> None:
    sealed = await keyring.seal(EMAIL, tenant_id="ab", customer_id="c", field="f")
    await keyring.seal(EMAIL, tenant_id="a", customer_id="bc", field="f")

    assert await keyring.open(sealed, tenant_id="a", customer_id="bc", field="f") is None


@pytest.mark.parametrize(
    "sealed", ["", EMAIL, "v1.", "v1.AAAA", "v1.!!!!", "v1.ä", "v2.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
)
async def test_what_was_never_sealed_is_an_error_and_not_a_text(keyring: Keyring, sealed: str) -> None:
    await keyring.seal(EMAIL, **ADA)

    with pytest.raises(ValueError, match="Not a sealed field"):
        await keyring.open(sealed, **ADA)


async def test_a_text_that_was_tampered_with_does_not_open(keyring: Keyring) -> None:
    sealed = await keyring.seal(EMAIL, **ADA)
    middle = len(sealed) // 2
    other = "A" if sealed[middle] != "A" else "B"

    assert await keyring.open(sealed[:middle] + other + sealed[middle + 1 :], **ADA) is None


async def test_the_database_never_sees_a_key(keyring: Keyring, owner_conn: AsyncConnection) -> None:
    sealed = await keyring.seal(EMAIL, **ADA)

    ((wrapped,),) = await (await owner_conn.execute("SELECT wrapped_key FROM customer_key")).fetchall()

    with pytest.raises(ValueError, match="cannot be decrypted"):
        sealed_text.decrypt(keys.AESGCM(wrapped[:32]), sealed, bound_to=wrapping.bind(*ADA.values()))


async def test_two_processes_that_meet_a_new_customer_at_once_agree_on_one_key(
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


async def test_an_erased_customer_has_no_texts_any_more(
    keyring: Keyring, fresh: Keyring, owner_conn: AsyncConnection
) -> None:
    sealed = await keyring.seal(EMAIL, **ADA)

    await erase(owner_conn)

    assert await fresh.open(sealed, **ADA) is None


async def test_nothing_can_be_sealed_for_an_erased_customer(
    keyring: Keyring, fresh: Keyring, owner_conn: AsyncConnection
) -> None:
    await keyring.seal(EMAIL, **ADA)
    await erase(owner_conn)

    with pytest.raises(CustomerErased, match="ada was erased"):
        await fresh.seal(EMAIL, **ADA)


async def test_an_erasure_reaches_a_process_that_had_just_read_within_seconds(
    keyring: Keyring, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = await keyring.seal(EMAIL, **ADA)
    assert await keyring.open(sealed, **ADA) == EMAIL

    await erase(owner_conn)
    in_5_s = time.monotonic() + 5
    monkeypatch.setattr(keys, "time", SimpleNamespace(monotonic=lambda: in_5_s))

    assert keyring.cached_text(sealed, **ADA) is None
    assert await keyring.open(sealed, **ADA) is None
    assert not any(customer.opened for customer in keyring._customers), "no plain text is kept of whoever was erased"
    with pytest.raises(CustomerErased):
        await keyring.seal(EMAIL, **ADA)


async def test_what_was_read_is_as_old_as_the_question_and_not_as_the_answer(
    keyring: Keyring, fresh: Keyring, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", AN_HOUR_S)
    sealed = await keyring.seal(EMAIL, **ADA)
    async with owner_conn.transaction():
        await owner_conn.execute("LOCK TABLE customer_key IN ACCESS EXCLUSIVE MODE")
        opening = asyncio.create_task(fresh.open(sealed, **ADA))

        async def asked() -> bool:
            waits = await owner_conn.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
            return await waits.fetchone() == (True,)

        await until(asked)
        asked_s = time.monotonic()

    assert await opening == EMAIL
    recalled = fresh.cached_text(sealed, **ADA)
    assert recalled is not None
    assert recalled.until_s < asked_s + AN_HOUR_S


async def test_a_customer_without_a_key_has_no_texts(keyring: Keyring) -> None:
    assert await keyring.open(Sealed("v1.AAAA"), **ADA) is None


async def test_a_master_key_that_opens_few_of_the_keys_is_wrong(
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
    await erase(owner_conn)
    await wrong.check()


# --- another master key ----------------------------------------------------------------------------------------------


async def test_what_a_former_master_key_has_wrapped_is_read_and_sealed_and_nothing_new_is_wrapped_with_it(
    pool: AsyncConnectionPool, keyring: Keyring
) -> None:
    bob = ADA | {"customer_id": "bob"}
    old = await keyring.seal(EMAIL, **ADA)
    both = Keyring(pool, master_keys=MasterKeys(OTHER_MASTER_KEY, [MASTER_KEY]))
    new, of_bob = await both.seal(EMAIL, **ADA), await both.seal(EMAIL, **bob)

    await both.check()
    assert [await both.open(text, **ADA) for text in (old, new)] == [EMAIL] * 2
    # To a process that has not been told of the new key yet.
    assert await keyring.open(new, **ADA) == EMAIL
    assert await keyring.open(of_bob, **bob) is None
    alone = Keyring(pool, master_keys=MasterKeys(OTHER_MASTER_KEY))
    assert await alone.open(of_bob, **bob) == EMAIL
    assert await alone.open(new, **ADA) is None


async def test_a_master_key_that_opens_the_newest_keys_alone_is_wrong(
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


async def test_equal_requests_have_equal_fingerprints_that_nobody_else_can_make(
    pool: AsyncConnectionPool, keyring: Keyring, fresh: Keyring
) -> None:
    wrong = Keyring(pool, master_keys=MasterKeys(OTHER_MASTER_KEY))

    assert keyring.fingerprint(b"{}") == fresh.fingerprint(b"{}")
    assert keyring.fingerprint(b"{}") != keyring.fingerprint(b"{ }")
    assert keyring.fingerprint(b"{}") != wrong.fingerprint(b"{}")


async def test_fingerprints_by_former_master_keys_are_known_too(pool: AsyncConnectionPool, keyring: Keyring) -> None:
    both = Keyring(pool, master_keys=MasterKeys(OTHER_MASTER_KEY, [MASTER_KEY]))

    assert both.fingerprints(b"{}") == (both.fingerprint(b"{}"), keyring.fingerprint(b"{}"))
    assert both.fingerprint(b"{}") != keyring.fingerprint(b"{}")
