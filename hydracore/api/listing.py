"""Lists of instances, rendered from a cache.

What a list shows of an instance changes only with the version of its row. So the database is asked for the ids and
versions of a list, and only for those rows whose version is not cached. For a list of a hundred that saves most of the
time, and it is as fresh as rows that are read in full. A page with the same instances at the same versions is taken
from the cache too, for as long as its e-mail addresses may be shown without a check of their keys.
"""

from __future__ import annotations

import math
import time
from typing import Final, NamedTuple

import msgspec

from events.keys import Keyring
from hydracore.api import schemas as s
from projections.queries import ListedKey, ListedRow, ListFilter, Queries, listed_keys

#: The most instances that one process caches, at about half a kilobyte each.
CACHED_ITEMS_MAX: Final = 20_000

#: The most pages that one process caches, at some 50 kilobytes per hundred instances.
CACHED_PAGES_MAX: Final = 64

#: How often the caches are cleared, in seconds: a rebuild by other rules may change rows without changing their versions.
CACHE_TTL_S: Final = 60.0

_ENCODER: Final = msgspec.json.Encoder()
_EMAIL: Final = b'"customer_email":'
_NULL_EMAIL: Final = _EMAIL + b"null"
_FIELD: Final = "customer_email"


class _CachedItem(NamedTuple):
    """An instance's JSON before and after its e-mail address, which is opened for each request."""

    version: int
    row: ListedRow
    before_email: bytes
    after_email: bytes


class Page(NamedTuple):
    """A rendered list. `last`: its last instance as (created_at, id) where more follow, else None."""

    json: bytes
    last: tuple[str, str] | None


class Listing:
    def __init__(self, queries: Queries, keyring: Keyring) -> None:
        self._queries = queries
        self._keyring = keyring
        self._cached_items: dict[str, _CachedItem] = {}
        #: Pages by limit and list text, each with the time until which it may be shown.
        self._pages: dict[tuple[int, str], tuple[Page, float]] = {}
        self._clear_at = 0.0

    async def page(self, list_filter: ListFilter) -> Page:
        """At most `list_filter.limit` instances."""
        # One more than is shown, to know whether others follow.
        listed = await self._queries.list_text(msgspec.structs.replace(list_filter, limit=list_filter.limit + 1))
        if time.monotonic() > self._clear_at or len(self._cached_items) > CACHED_ITEMS_MAX:
            self._cached_items, self._pages = {}, {}
            self._clear_at = time.monotonic() + CACHE_TTL_S
        page, until_s = self._pages.get((list_filter.limit, listed), (None, 0.0))
        if page is not None and time.monotonic() < until_s:
            return page
        page, until_s = await self._rendered(listed_keys(listed), list_filter.limit)
        if len(self._pages) >= CACHED_PAGES_MAX:
            self._pages.clear()
        self._pages[list_filter.limit, listed] = page, until_s
        return page

    async def _rendered(self, keys: list[ListedKey], limit: int) -> tuple[Page, float]:
        """The page, and the time until which it may be shown again."""
        found = await self._look_up(keys)
        shown = [found[key.id] for key in keys[:limit] if key.id in found]
        items, until_s = list[bytes](), self._clear_at
        for each in shown:
            item, shown_until_s = self._from_cache(each) or (await self._decrypted(each), 0.0)
            items.append(item)
            until_s = min(until_s, shown_until_s)
        last = (shown[-1].row.created_at, shown[-1].row.id) if len(keys) > limit else None
        return Page(b'{"instances":[' + b",".join(items) + b"]}", last), until_s

    async def _look_up(self, keys: list[ListedKey]) -> dict[str, _CachedItem]:
        """The cache, after the rows of `keys` that it lacked or had in an old version were read."""
        cached = self._cached_items
        missing = [key.id for key in keys if (known := cached.get(key.id)) is None or known.version < key.version]
        if missing:
            for row in await self._queries.listed(missing):
                known = cached.get(row.id)
                # Another request may have read a later version meanwhile, and may be about to show it.
                if known is None or known.version < row.version:
                    before, _, after = _ENCODER.encode(_item(row)).rpartition(_NULL_EMAIL)
                    cached[row.id] = _CachedItem(row.version, row, before + _EMAIL, after)
        return cached

    def _from_cache(self, each: _CachedItem) -> tuple[bytes, float] | None:
        """The item, and the time until which it may be shown; None if its address is not cached, which is rare."""
        row = each.row
        if row.customer_email is None:
            return each.before_email + b"null" + each.after_email, math.inf
        email = self._keyring.cached_text(
            row.customer_email, tenant_id=row.tenant_id, customer_id=row.customer_id, field=_FIELD
        )
        if email is None:
            return None
        return each.before_email + _ENCODER.encode(email.text) + each.after_email, email.until_s

    async def _decrypted(self, each: _CachedItem) -> bytes:
        row = each.row
        assert row.customer_email is not None
        email = await self._keyring.open(
            row.customer_email, tenant_id=row.tenant_id, customer_id=row.customer_id, field=_FIELD
        )
        return each.before_email + _ENCODER.encode(email) + each.after_email


def _item(row: ListedRow) -> s.InstanceListItem:
    return s.InstanceListItem(
        agent_name=row.agent_name,
        created_at=row.created_at,
        hostname=row.hostname,
        id=row.id,
        ip_address=row.ip_address,
        preset_id=row.preset_id,
        provider=row.provider,
        region_id=row.region_id,
        runtime_type=row.runtime_type,
        status=row.status,
        workload_type=row.workload_type,
        customer_email=None,
        product_tier_name=row.tier_name,
        customer_id=row.customer_id,
        tenant_id=row.tenant_id,
    )
