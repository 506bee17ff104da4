"""Lists of the Hetzner API that come in pages (https://docs.hetzner.cloud/reference/cloud#pagination).

Pages are cut by number. Once an entry goes, all behind it move up, and one of them onto the page before: read from the first page
to the last, that one is missed, and nothing shows it where another entry has come meanwhile. So they are read from the last
to the first, oldest entry first: what moves up is met again, and what is new comes last, where nobody looks any more.
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
    """Every page of a list, the last one first. Entries may be on two of them, and the later page of this list is right.

    What was in the list from the first request to the last is on one of them. The one exception: an old entry that comes
    to match `query` meanwhile moves the newer ones back, and may move one out of sight.

    How many pages there are is settled by the first answer, so that no answer can have us ask without end. Raises
    `ProviderRefused` (`too_many_` and the path) where they are more than `pages_max`.
    """
    first = await _page(http, path, decoder, query, number=1)
    if first.meta.pagination.next_page is None:
        return [first]
    last = first.meta.pagination.last_page
    if last is None or last <= 1:
        raise ProviderRetry(UNREADABLE_ANSWER)
    if last > pages_max:
        raise ProviderRefused(f"too_many_{path}")
    # The first page once more: what was on the second may be on it by now.
    return [await _page(http, path, decoder, query, number=number) for number in range(last, 0, -1)]


async def _page(
    http: HetznerHttp, path: str, decoder: msgspec.json.Decoder[Page], query: Query, *, number: int
) -> Page:
    page = await http.get(path, decoder, {**query, "sort": "id:asc", "page": number, "per_page": PER_PAGE})
    if page.meta.pagination.page != number:
        raise ProviderRetry(UNREADABLE_ANSWER)
    return page
