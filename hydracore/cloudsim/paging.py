"""Pagination and sorting (https://docs.hetzner.cloud/reference/cloud#pagination, #sorting)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from hydracore.cloudsim.problems import invalid_input

PER_PAGE_DEFAULT: Final = 25
PER_PAGE_MAX: Final = 50

Item = TypeVar("Item")


def page_of(items: Sequence[Item], *, page: str | None, per_page: str | None) -> tuple[Sequence[Item], dict[str, Any]]:
    """The items of one page, and the `meta` object that goes with them. A page beyond the end is empty."""
    number = _natural("page", page, default=1)
    size = min(_natural("per_page", per_page, default=PER_PAGE_DEFAULT), PER_PAGE_MAX)
    last = max(1, -(-len(items) // size))
    pagination = {
        "page": number,
        "per_page": size,
        "previous_page": number - 1 if number > 1 else None,
        "next_page": number + 1 if number < last else None,
        "last_page": last,
        "total_entries": len(items),
    }
    return items[(number - 1) * size : number * size], {"pagination": pagination}


def sort_items(
    items: Sequence[Item], orders: Sequence[str], fields: Mapping[str, Callable[[Item], Any]]
) -> Sequence[Item]:
    """`items` sorted by `orders` such as `id`, `name:asc`, `created:desc`, of which the first counts most."""
    result = list(items)
    for order in reversed(orders):
        name, _, direction = order.partition(":")
        if name not in fields or direction not in {"", "asc", "desc"}:
            raise invalid_input("sort", f"sort must be one of {', '.join(fields)}, with :asc or :desc")
        result.sort(key=fields[name], reverse=direction == "desc")
    return result


def _natural(field: str, text: str | None, *, default: int) -> int:
    if text is None:
        return default
    # At most nine digits, as `int` raises for some thousands of them.
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:  # noqa: PLR2004 - said above
        raise invalid_input(field, f"{field} must be a number from 1")
    return int(text)
