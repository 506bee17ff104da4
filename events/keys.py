"""Personal and secret fields: encrypted with a key per customer, wrapped by a key that is not in the database.

The log and the read tables hold ciphertext only (`v1.` and the base64url of nonce and AES-256-GCM output; the
additional data binds it to tenant, customer and field). Destroying a customer's key makes every copy unreadable,
backups included (docs/adr/0010), while digests and chains, which cover ciphertext, stay as they are.
"""

from __future__ import annotations

import base64
import hmac
import os
import time
from collections.abc import Sequence
from hashlib import sha256
from sys import getsizeof
from typing import NamedTuple

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from events.errors import CustomerErased, KeyUnreadable, MasterKeyWrong
from events.master_keys import MasterKeys
from events.patience import patiently, run
from events.recent import Recent
from events.sql import Statements
from events.types import Sealed
from events.wrapping import NONCE_BYTES, Wrapping, bind, derive

_SQL = Statements("events", "keys.sql")
_FIND = _SQL["find_key"]
_SAMPLES = (_SQL["oldest_keys"], _SQL["last_keys"])
_CREATE = _SQL["create_key"]
_DESTROY = _SQL["destroy_keys"]

_PREFIX = "v1."
_TAG_BYTES = 16

#: How long an unwrapped key may serve before the table is asked again: the longest that an erased customer's fields
#: can still be read by a process that had just read them.
CACHE_S = 5.0

#: How many customers' keys, and how many opened texts of each, one process keeps; and how many bytes all these texts take, about.
_CUSTOMERS_MAX = 10_000
_TEXTS_MAX = 1_000
TEXTS_BYTES_MAX = 64 * 2**20

#: What a text that is kept takes beside itself and its ciphertext.
_TEXT_BYTES = 200

#: Texts whose ciphertext is longer are opened anew each time. Lists need addresses and names; a thousand versions of a
#: configuration would be half a gigabyte.
_KEPT_CHARS_MAX = 1_024

#: How many customers' keys of a kind are tried before anything is sealed. One alone may be damaged.
TRIED_MAX = 100

_log = structlog.get_logger(__name__)


class DoesNotOpen(ValueError):
    """A text of a sealed one's form that the customer's key does not open: it is another's, or of a key that was lost."""


class _Customer:
    """One customer's cipher, None where it was erased or does not open, and what was opened with it."""

    __slots__ = ("cipher", "connected", "opened", "opened_bytes", "stale_at", "wrapped")

    def __init__(self, cipher: AESGCM | None, *, wrapped: bytes | None, stale_at: float, connected: int) -> None:
        self.cipher = cipher
        #: As it is in the table; None where it was destroyed.
        self.wrapped = wrapped
        self.stale_at = stale_at
        #: How often the pool had connected when it was looked for.
        self.connected = connected
        #: Plain texts by field and ciphertext: what was sealed for one field is not readable as another.
        self.opened: dict[tuple[str, str], str] = {}
        self.opened_bytes = 0


class Recalled(NamedTuple):
    """A plain text that may be shown until then, by the monotonic clock in seconds: its key may be destroyed meanwhile."""

    text: str
    until_s: float


class Keyring:
    """Seals and opens fields. `master_keys`: from settings; without them no field of any customer can be read."""

    def __init__(self, pool: AsyncConnectionPool, *, master_keys: MasterKeys) -> None:
        self._pool = pool
        self._wrapping = Wrapping(master_keys)
        self._fingerprint_keys = [derive(key, b"fingerprint requests") for key in master_keys]
        #: The ones that were looked for last, as every few seconds those are that are in use. With one go all of their texts.
        self._customers = Recent[tuple[str, str], _Customer](count_max=_CUSTOMERS_MAX, bytes_max=TEXTS_BYTES_MAX)
        #: Of whom it was said already that there is something which does not open.
        self._reported: set[tuple[str, str]] = set()

    def fingerprint(self, request: bytes) -> bytes:
        """A keyed digest of a request body: equal bodies compare equal, and it cannot be guessed back from the log."""
        return hmac.digest(self._fingerprint_keys[0], request, sha256)

    def fingerprints(self, request: bytes) -> tuple[bytes, ...]:
        """What it is now, and what it was by each former master key: the same request was perhaps recorded under one of them."""
        return tuple(hmac.digest(key, request, sha256) for key in self._fingerprint_keys)

    async def seal(self, text: str, *, tenant_id: str, customer_id: str, field: str) -> Sealed:
        """`text` as ciphertext. Raises `CustomerErased` where the key was destroyed, and `KeyUnreadable`."""
        customer = await self._customer(tenant_id, customer_id, create=True)
        assert customer is not None, "whoever has no key gets one"
        if customer.wrapped is None:
            raise CustomerErased(f"The data of customer {customer_id} was erased")
        if customer.cipher is None:
            raise KeyUnreadable(
                f"The key of customer {customer_id} does not open: it was damaged, or wrapped by another HYDRACORE_MASTER_KEY"
            )
        nonce = os.urandom(NONCE_BYTES)
        sealed = customer.cipher.encrypt(nonce, text.encode(), bind(tenant_id, customer_id, field))
        return Sealed(_PREFIX + base64.urlsafe_b64encode(nonce + sealed).decode())

    async def keep(self, *, tenant_id: str, customer_id: str) -> None:
        """To be called once what was sealed for them is in the log: a standby may have taken over meanwhile that lacks a new customer's
        key. It costs a round trip only where the pool has connected since.
        """
        if self._customers.get((tenant_id, customer_id)) is not None:
            await self._customer(tenant_id, customer_id, create=False)

    async def open(self, sealed: str, *, tenant_id: str, customer_id: str, field: str) -> str | None:
        """The plain text, or None where nobody can read it any more: the customer was erased, or its key was lost or does not open.

        A key that is in no backup is lost by a restore, and the customer gets another one with the next text that is sealed for
        them: what opens with neither must not keep the rest from being read. Raises `ValueError` for what has not the form of a
        sealed text.
        """
        try:
            return await self.unseal(sealed, tenant_id=tenant_id, customer_id=customer_id, field=field)
        except DoesNotOpen:
            if self._is_news(tenant_id, customer_id):
                _log.warning("sealed_field_unreadable", tenant_id=tenant_id, customer_id=customer_id, field=field)
            return None

    async def unseal(self, sealed: str, *, tenant_id: str, customer_id: str, field: str) -> str | None:
        """As `open`, for whoever does not know that it was sealed. Raises `DoesNotOpen` where the customer's key does not open it."""
        known = await self._customer(tenant_id, customer_id, create=False)
        if known is None or known.cipher is None:
            return None
        text = known.opened.get((field, sealed))
        if text is None:
            text = _open(known.cipher, sealed, bind(tenant_id, customer_id, field))
            if len(sealed) <= _KEPT_CHARS_MAX:
                self._keep((tenant_id, customer_id), known, (field, sealed), text)
        return text

    def recall(self, sealed: str, *, tenant_id: str, customer_id: str, field: str) -> Recalled | None:
        """The plain text, where it is short and was opened lately, without waiting. None says nothing: `open` it."""
        known = self._customers.get((tenant_id, customer_id))
        if known is None or known.cipher is None or known.stale_at < time.monotonic():
            return None
        text = known.opened.get((field, sealed))
        return None if text is None else Recalled(text, known.stale_at)

    def _keep(self, whose: tuple[str, str], customer: _Customer, key: tuple[str, str], text: str) -> None:
        if len(customer.opened) >= _TEXTS_MAX:
            customer.opened.clear()
            customer.opened_bytes = 0
        customer.opened[key] = text
        customer.opened_bytes += getsizeof(text) + getsizeof(key[1]) + _TEXT_BYTES
        self._customers.put(whose, customer, weight=customer.opened_bytes)

    async def check(self) -> None:
        """To be called before anything is served: what is sealed under a wrong key can be opened by nobody who has the right one.

        Raises `MasterKeyWrong` where most of the oldest customers' keys, or of those that a change of the master key comes to last, do
        not open, and `StoreUnavailable`.
        """

        async def samples(connection: AsyncConnection) -> list[list[TupleRow]]:
            return [await (await connection.execute(each, (TRIED_MAX,))).fetchall() for each in _SAMPLES]

        for tried in await patiently(self._pool, samples):
            opened = sum(self._cipher(wrapped, tenant, customer) is not None for tenant, customer, wrapped in tried)
            if 2 * opened < len(tried):
                raise MasterKeyWrong(
                    "HYDRACORE_MASTER_KEY is not the one that this database's customers' keys were wrapped by: "
                    f"{opened} of {len(tried)} that were tried open with it; where it was replaced, name the one before in "
                    "HYDRACORE_MASTER_KEYS_FORMER"
                )

    def _is_news(self, tenant_id: str, customer_id: str) -> bool:
        """Whether nothing was said yet of what does not open of theirs."""
        if (tenant_id, customer_id) in self._reported:
            return False
        if len(self._reported) >= _CUSTOMERS_MAX:
            self._reported.clear()
        self._reported.add((tenant_id, customer_id))
        return True

    async def _customer(self, tenant_id: str, customer_id: str, *, create: bool) -> _Customer | None:
        cached = self._customers.get((tenant_id, customer_id))
        connected = self._connected()
        if cached is not None and cached.stale_at >= time.monotonic() and cached.connected == connected:
            return cached
        # From before the look: the key may be destroyed while its answer is under way.
        looked_at = time.monotonic()
        row = await _fetch(self._pool, tenant_id, customer_id)
        if row != (None,) and cached is not None and cached.wrapped is None:
            # A standby has taken over that lacks the end of it, which is for good.
            await destroy(self._pool, [(tenant_id, customer_id)])
            _log.warning("erased_keys_destroyed_again", count=1, hint="run hydracore db migrate")
            row = (None,)
        if row is None and (wrapped := self._missing(cached, tenant_id, customer_id, create=create)) is not None:
            looked_at = time.monotonic()
            row = await _make(self._pool, tenant_id, customer_id, wrapped)
        if row is None:
            return None
        cipher = None if row[0] is None else self._cipher(row[0], tenant_id, customer_id)
        if row[0] is not None and cipher is None and self._is_news(tenant_id, customer_id):
            hint = "it was damaged, or wrapped by another HYDRACORE_MASTER_KEY"
            _log.error("customer_key_unreadable", tenant_id=tenant_id, customer_id=customer_id, hint=hint)
        customer = _Customer(cipher, wrapped=row[0], stale_at=looked_at + CACHE_S, connected=connected)
        # Somebody else may have looked, and opened more, meanwhile.
        latest = self._customers.get((tenant_id, customer_id))
        if latest is not None and cipher is not None:
            customer.opened, customer.opened_bytes = latest.opened, latest.opened_bytes
        self._customers.put((tenant_id, customer_id), customer, weight=customer.opened_bytes)
        return customer

    def _missing(self, known: _Customer | None, tenant_id: str, customer_id: str, *, create: bool) -> bytes | None:
        """The wrapped key of a customer who has none in the database, if they are to have one.

        Keys are destroyed and never taken away. One that was there is missing where a standby has taken over that lacks what was last
        written: it is put back, because with it was sealed what came later, and may be in the log.
        """
        if known is not None and known.cipher is not None:
            _log.warning("customer_key_put_back", tenant_id=tenant_id, customer_id=customer_id)
            return known.wrapped
        return self._wrapping.wrap(AESGCM.generate_key(bit_length=256), tenant_id, customer_id) if create else None

    def _connected(self) -> int:
        """How often the pool has connected. Whatever is known was learned before the last time, of what may have been another database."""
        return self._pool.get_stats().get("connections_num", 0)

    def _cipher(self, wrapped: bytes, tenant_id: str, customer_id: str) -> AESGCM | None:
        unwrapped = self._wrapping.unwrap(wrapped, tenant_id, customer_id)
        try:
            return None if unwrapped is None else AESGCM(unwrapped.key)
        except ValueError:
            return None  # It is of another length.


async def destroy(pool: AsyncConnectionPool, customers: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Destroy the keys of customers (tenant and id each), and keep any from being made; those for whom that was not so yet.

    `CACHE_S` later no process can open or seal anything of theirs any more.
    """

    async def work(connection: AsyncConnection) -> set[tuple[str, str]]:
        parameters = {"tenants": [tenant for tenant, _ in customers], "customers": [each for _, each in customers]}
        return {(tenant, each) for tenant, each in await (await connection.execute(_DESTROY, parameters)).fetchall()}

    return await patiently(pool, work) if customers else set()


async def is_destroyed(pool: AsyncConnectionPool, *, tenant_id: str, customer_id: str) -> bool:
    """Whether the customer's key was destroyed. Raises `StoreUnavailable`."""
    return await _fetch(pool, tenant_id, customer_id) == (None,)


async def _make(pool: AsyncConnectionPool, tenant_id: str, customer_id: str, wrapped: bytes) -> TupleRow | None:
    """Have this be the customer's key; what stands in the table then, as somebody else may have been first."""

    async def work(connection: AsyncConnection) -> TupleRow | None:
        # Both on one connection, so that the look is not at a standby which has taken over without the key.
        await connection.execute(_CREATE, (tenant_id, customer_id, wrapped))
        return await (await connection.execute(_FIND, (tenant_id, customer_id))).fetchone()

    return await patiently(pool, work)


async def _fetch(pool: AsyncConnectionPool, tenant_id: str, customer_id: str) -> TupleRow | None:
    found = await run(pool, _FIND, (tenant_id, customer_id))
    return found[0] if found else None


def _open(cipher: AESGCM, sealed: str, bound_to: bytes) -> str:
    try:
        raw = base64.urlsafe_b64decode(sealed.removeprefix(_PREFIX))
    except ValueError:
        raw = b""
    if not sealed.startswith(_PREFIX) or len(raw) < NONCE_BYTES + _TAG_BYTES:
        raise ValueError("Not a sealed field")
    try:
        return cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], bound_to).decode()
    except InvalidTag:
        raise DoesNotOpen("A sealed field does not open with its customer's key") from None
