"""Encrypts personal and secret fields with a key per customer, which is wrapped by a master key outside the database.

The log and the read tables hold ciphertext only (see `events.sealed_text`), bound to its tenant, customer and field. Destroying a
customer's key makes every copy of the ciphertext unreadable, backups included (docs/adr/0010). Digests and chains cover the
ciphertext, so they stay valid.
"""

from __future__ import annotations

import dataclasses
import hmac
import time
from collections.abc import Sequence
from hashlib import sha256
from sys import getsizeof
from typing import NamedTuple

import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from events.bounded_cache import BoundedCache
from events.errors import CustomerErased, KeyUnreadable, MasterKeyWrong
from events.master_keys import MasterKeys
from events.retries import run, with_retries
from events.sealed_text import UndecryptableText, decrypt, encrypt
from events.sql import Statements
from events.types import Sealed
from events.wrapping import KeyWrapper, bind, derive

_SQL = Statements("events", "keys.sql")
_FIND = _SQL["find_key"]
_SAMPLES = (_SQL["oldest_keys"], _SQL["last_keys"])
_CREATE = _SQL["create_key"]
_DESTROY = _SQL["destroy_keys"]

#: How long a process uses an unwrapped key before it reads the table again. For so long it can still read the fields of a customer
#: who was erased meanwhile.
CACHE_S = 5.0

#: The most customers' keys, decrypted texts per customer, and approximate bytes of all these texts that one process caches.
_CUSTOMERS_MAX = 10_000
_TEXTS_MAX = 1_000
TEXTS_BYTES_MAX = 64 * 2**20

#: Bytes that a cached text takes beside itself and its ciphertext.
_TEXT_BYTES = 200

#: Longer ciphertexts are decrypted each time. Lists show addresses and names, which are shorter; a thousand versions of a
#: configuration would take half a gigabyte.
_CACHED_CHARS_MAX = 1_024

#: How many keys of each sample are tried at the start. A single key might be damaged.
SAMPLE_SIZE = 100

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True, kw_only=True, repr=False)
class _CachedCustomer:
    """One customer's key and the texts decrypted with it. It has no `repr`, which would show the texts in a traceback."""

    #: None if the key was destroyed or cannot be unwrapped.
    cipher: AESGCM | None
    #: The wrapped key as stored; None if it was destroyed.
    wrapped: bytes | None
    #: Until when the key is used without reading it again (seconds, monotonic clock).
    stale_at: float
    #: How many connections the pool had opened when the key was read.
    connected: int
    #: Plain texts by field and ciphertext: a text sealed for one field must not be readable as another field.
    opened: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict[tuple[str, str], str])
    opened_bytes: int = 0


class CachedText(NamedTuple):
    """A plain text that may be shown until `until_s` (seconds, monotonic clock). After that its key may have been destroyed."""

    text: str
    until_s: float


class Keyring:
    """Seals (encrypts) and opens (decrypts) fields. Without the `master_keys`, which come from the settings, nothing can be opened."""

    def __init__(self, pool: AsyncConnectionPool, *, master_keys: MasterKeys) -> None:
        self._pool = pool
        self._wrapper = KeyWrapper(master_keys)
        self._fingerprint_keys = [derive(key, b"fingerprint requests") for key in master_keys]
        #: The most recently used customers. Evicting one drops its texts, too.
        self._customers = BoundedCache[tuple[str, str], _CachedCustomer](
            count_max=_CUSTOMERS_MAX, bytes_max=TEXTS_BYTES_MAX
        )
        #: Customers for whom an unreadable field or key was logged already.
        self._reported: set[tuple[str, str]] = set()

    def fingerprint(self, request: bytes) -> bytes:
        """A keyed digest of a request body. Equal bodies have equal digests, and the body cannot be guessed from the digest."""
        return hmac.digest(self._fingerprint_keys[0], request, sha256)

    def fingerprints(self, request: bytes) -> tuple[bytes, ...]:
        """The fingerprints by the present and by each former master key: an earlier request may have been recorded with any of them."""
        return tuple(hmac.digest(key, request, sha256) for key in self._fingerprint_keys)

    async def seal(self, text: str, *, tenant_id: str, customer_id: str, field: str) -> Sealed:
        """Encrypt `text`. Makes the customer a key if there is none. Raises `CustomerErased` if it was destroyed, and `KeyUnreadable`."""
        customer = await self._customer(tenant_id, customer_id, create=True)
        assert customer is not None, "a missing key was created"
        if customer.wrapped is None:
            raise CustomerErased(f"The data of customer {customer_id} was erased")
        if customer.cipher is None:
            raise KeyUnreadable(
                f"The key of customer {customer_id} cannot be decrypted: it is damaged, or HYDRACORE_MASTER_KEY is wrong"
            )
        return encrypt(customer.cipher, text, bound_to=bind(tenant_id, customer_id, field))

    async def ensure_stored(self, *, tenant_id: str, customer_id: str) -> None:
        """Make sure that the customer's key is stored. Call it once the log has what was sealed for the customer.

        A standby that lacks a new customer's key may have taken over in between. This takes a round trip only if the pool has opened
        a connection since the key was read.
        """
        if self._customers.get((tenant_id, customer_id)) is not None:
            await self._customer(tenant_id, customer_id, create=False)

    async def open(self, sealed: str, *, tenant_id: str, customer_id: str, field: str) -> str | None:
        """Decrypt a text. None if that is impossible: the customer was erased, or the key was lost or cannot be unwrapped.

        A restore loses keys that are in no backup. Such a customer gets a new key with the next text that is sealed for them; a text
        that does not open with it must not keep other fields from being read. Raises `ValueError` if `sealed` has not the form of a
        sealed text.
        """
        try:
            return await self.unseal(sealed, tenant_id=tenant_id, customer_id=customer_id, field=field)
        except UndecryptableText:
            if self._is_first_report(tenant_id, customer_id):
                _log.warning("sealed_field_unreadable", tenant_id=tenant_id, customer_id=customer_id, field=field)
            return None

    async def unseal(self, sealed: str, *, tenant_id: str, customer_id: str, field: str) -> str | None:
        """As `open`, for texts that might not have been sealed. Raises `UndecryptableText` if the customer's key does not decrypt it."""
        known = await self._customer(tenant_id, customer_id, create=False)
        if known is None or known.cipher is None:
            return None
        text = known.opened.get((field, sealed))
        if text is None:
            text = decrypt(known.cipher, sealed, bound_to=bind(tenant_id, customer_id, field))
            if len(sealed) <= _CACHED_CHARS_MAX:
                self._cache_text((tenant_id, customer_id), known, (field, sealed), text)
        return text

    def cached_text(self, sealed: str, *, tenant_id: str, customer_id: str, field: str) -> CachedText | None:
        """The plain text from the cache, without waiting. None: it is not cached, so call `open`."""
        known = self._customers.get((tenant_id, customer_id))
        if known is None or known.cipher is None or known.stale_at < time.monotonic():
            return None
        text = known.opened.get((field, sealed))
        return None if text is None else CachedText(text, known.stale_at)

    def _cache_text(
        self, customer_key: tuple[str, str], customer: _CachedCustomer, key: tuple[str, str], text: str
    ) -> None:
        if len(customer.opened) >= _TEXTS_MAX:
            customer.opened.clear()
            customer.opened_bytes = 0
        customer.opened[key] = text
        customer.opened_bytes += getsizeof(text) + getsizeof(key[1]) + _TEXT_BYTES
        self._customers.put(customer_key, customer, weight=customer.opened_bytes)

    async def check(self) -> None:
        """Check the master key. Call it before anything is served: what a wrong key seals, the right one cannot open.

        Tries the oldest customers' keys, and those that a change of the master key rewraps last. Raises `MasterKeyWrong` if most of
        either sample cannot be unwrapped, and `StoreUnavailable`.
        """

        async def samples(connection: AsyncConnection) -> list[list[TupleRow]]:
            return [await (await connection.execute(each, (SAMPLE_SIZE,))).fetchall() for each in _SAMPLES]

        for tried in await with_retries(self._pool, samples):
            opened = sum(self._cipher(wrapped, tenant, customer) is not None for tenant, customer, wrapped in tried)
            if 2 * opened < len(tried):
                raise MasterKeyWrong(
                    "HYDRACORE_MASTER_KEY does not fit this database: "
                    f"it decrypts only {opened} of {len(tried)} customers' keys that were tried. If the master key was replaced, "
                    "set HYDRACORE_MASTER_KEYS_FORMER to the former one"
                )

    def _is_first_report(self, tenant_id: str, customer_id: str) -> bool:
        """Whether nothing unreadable of this customer was logged yet. The next call says no."""
        if (tenant_id, customer_id) in self._reported:
            return False
        if len(self._reported) >= _CUSTOMERS_MAX:
            self._reported.clear()
        self._reported.add((tenant_id, customer_id))
        return True

    async def _customer(self, tenant_id: str, customer_id: str, *, create: bool) -> _CachedCustomer | None:
        cached = self._customers.get((tenant_id, customer_id))
        connections_opened = self._connections_opened()
        if cached is not None and cached.stale_at >= time.monotonic() and cached.connected == connections_opened:
            return cached
        # Taken before the query: the key may be destroyed while the answer is on its way.
        looked_at = time.monotonic()
        row = await _fetch_key(self._pool, tenant_id, customer_id)  # None: no row. (None,): a destroyed key.
        if row != (None,) and cached is not None and cached.wrapped is None:
            # A standby has taken over that lacks the destruction of the key, which must stand.
            await destroy(self._pool, [(tenant_id, customer_id)])
            _log.warning("erased_keys_destroyed_again", count=1, hint="run hydracore db migrate")
            row = (None,)
        if row is None and (wrapped := self._key_to_store(cached, tenant_id, customer_id, create=create)) is not None:
            looked_at = time.monotonic()
            row = await _store_key(self._pool, tenant_id, customer_id, wrapped)
        if row is None:
            return None
        cipher = None if row[0] is None else self._cipher(row[0], tenant_id, customer_id)
        if row[0] is not None and cipher is None and self._is_first_report(tenant_id, customer_id):
            hint = "the key is damaged, or HYDRACORE_MASTER_KEY is wrong"
            _log.error("customer_key_unreadable", tenant_id=tenant_id, customer_id=customer_id, hint=hint)
        customer = _CachedCustomer(
            cipher=cipher, wrapped=row[0], stale_at=looked_at + CACHE_S, connected=connections_opened
        )
        # Meanwhile another task may have read the key and decrypted more texts.
        latest = self._customers.get((tenant_id, customer_id))
        if latest is not None and cipher is not None:
            customer.opened, customer.opened_bytes = latest.opened, latest.opened_bytes
        self._customers.put((tenant_id, customer_id), customer, weight=customer.opened_bytes)
        return customer

    def _key_to_store(
        self, known: _CachedCustomer | None, tenant_id: str, customer_id: str, *, create: bool
    ) -> bytes | None:
        """The wrapped key to store for a customer who has no row. None if there is to be none.

        A destroyed key keeps its row, so a row that was there is missing only if a standby took over that lacks the last writes. The
        key that this process knows is put back then, because texts that were sealed with it may be in the log.
        """
        if known is not None and known.cipher is not None:
            _log.warning("customer_key_put_back", tenant_id=tenant_id, customer_id=customer_id)
            return known.wrapped
        return self._wrapper.wrap(AESGCM.generate_key(bit_length=256), tenant_id, customer_id) if create else None

    def _connections_opened(self) -> int:
        """How many connections the pool has opened. After a new one the database may be another than the cache was read from."""
        return self._pool.get_stats().get("connections_num", 0)

    def _cipher(self, wrapped: bytes, tenant_id: str, customer_id: str) -> AESGCM | None:
        unwrapped = self._wrapper.unwrap(wrapped, tenant_id, customer_id)
        try:
            return None if unwrapped is None else AESGCM(unwrapped.key)
        except ValueError:
            return None  # It has not the length of a key.


async def destroy(pool: AsyncConnectionPool, customers: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Destroy the keys of customers (pairs of tenant and id), and prevent that they get new ones.

    Returns the customers whose keys had not been destroyed before. After `CACHE_S` no process can open or seal anything of theirs.
    """

    async def work(connection: AsyncConnection) -> set[tuple[str, str]]:
        parameters = {"tenants": [tenant for tenant, _ in customers], "customers": [each for _, each in customers]}
        return {(tenant, each) for tenant, each in await (await connection.execute(_DESTROY, parameters)).fetchall()}

    return await with_retries(pool, work) if customers else set()


async def is_destroyed(pool: AsyncConnectionPool, *, tenant_id: str, customer_id: str) -> bool:
    """Whether the customer's key was destroyed. Raises `StoreUnavailable`."""
    return await _fetch_key(pool, tenant_id, customer_id) == (None,)


async def _store_key(pool: AsyncConnectionPool, tenant_id: str, customer_id: str, wrapped: bytes) -> TupleRow | None:
    """Store the customer's key unless there is one. Returns the row as it is then: another process may have been first."""

    async def work(connection: AsyncConnection) -> TupleRow | None:
        # Both on one connection: on another one, the query might reach a standby that took over without the key.
        await connection.execute(_CREATE, (tenant_id, customer_id, wrapped))
        return await (await connection.execute(_FIND, (tenant_id, customer_id))).fetchone()

    return await with_retries(pool, work)


async def _fetch_key(pool: AsyncConnectionPool, tenant_id: str, customer_id: str) -> TupleRow | None:
    found = await run(pool, _FIND, (tenant_id, customer_id))
    return found[0] if found else None
