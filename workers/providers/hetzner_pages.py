"""Reads paged lists of the Hetzner API (https://docs.hetzner.cloud/reference/cloud#pagination).

A page is a range of positions in the list. If an entry is removed, all entries after it move up, and one of them moves to the page
before. Read from the first page to the last, that entry would be missed, and the counts would not show it if another entry was added
meanwhile. So lists are sorted with the oldest entry first, and read from the last page to the first: entries that move up are read
again, and new ones are added at the end, which has been read.
"""

from typing import Protocol, TypeVar

import msgspec

from workers.providers.base import ProviderRefused, ProviderRetry
from workers.providers.hetzner_errors import UNREADABLE_ANSWER
from workers.providers.hetzner_http import HetznerHttp, Query
from workers.providers.hetzner_wire import PER_PAGE, Meta


class Paged(Protocol):
    """A page of any list."""

    @property
    def meta(self) -> Meta: ...


Page = TypeVar("Page", bound=Paged)


async def all_pages(
    http: HetznerHttp, path: str, decoder: msgspec.json.Decoder[Page], query: Query, *, pages_max: int
) -> list[Page]:
    """All pages of a list, the last one first. If an entry is on two of them, the later one in the result is more recent.

    All entries that were in the list from the first request to the last are included, with one exception: if an old entry comes to
    match `query` meanwhile, it moves the newer ones back, and one of these may be missed.

    The first answer decides how many pages are read, so that their number is bounded. Raises `ProviderRefused` (`too_many_` and the
    path) if there are more than `pages_max`.
    """
    first = await _page(http, path, decoder, query, number=1)
    if first.meta.pagination.next_page is None:
        return [first]
    last = first.meta.pagination.last_page
    if last is None or last <= 1:
        raise ProviderRetry(UNREADABLE_ANSWER)
    if last > pages_max:
        raise ProviderRefused(f"too_many_{path}")
    # The first page is read again: an entry of the second may have moved to it by now.
    return [await _page(http, path, decoder, query, number=number) for number in range(last, 0, -1)]


async def _page(
    http: HetznerHttp, path: str, decoder: msgspec.json.Decoder[Page], query: Query, *, number: int
) -> Page:
    page = await http.get(path, decoder, {**query, "sort": "id:asc", "page": number, "per_page": PER_PAGE})
    if page.meta.pagination.page != number:
        raise ProviderRetry(UNREADABLE_ANSWER)
    return page
