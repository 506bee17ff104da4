"""Pages cover a list completely and without overlap, and say where in it they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydracore.cloudsim.paging import PER_PAGE_DEFAULT, PER_PAGE_MAX, page_of, sort_items
from hydracore.cloudsim.problems import ApiError


@given(st.integers(0, 220), st.integers(1, 60))
def test_following_next_page_reads_every_item_exactly_once(count: int, per_page: int) -> None:
    items = list(range(count))
    found: list[int] = []
    page, pagination = 0, {"next_page": 1}
    while pagination["next_page"] is not None:
        page = pagination["next_page"]
        part, meta = page_of(items, page=str(page), per_page=str(per_page))
        found.extend(part)
        pagination = meta["pagination"]
        assert pagination["page"] == page
        assert pagination["previous_page"] == (page - 1 or None)
        assert pagination["total_entries"] == count
        assert len(part) <= pagination["per_page"] <= PER_PAGE_MAX

    assert found == items
    assert page == pagination["last_page"]


def test_without_parameters_the_first_page_is_returned_in_the_default_size() -> None:
    part, meta = page_of(list(range(30)), page=None, per_page=None)

    assert part == list(range(PER_PAGE_DEFAULT))
    assert meta["pagination"]["next_page"] == 2


def test_a_page_beyond_the_end_is_empty() -> None:
    part, meta = page_of([1, 2, 3], page="9", per_page="2")

    assert part == []
    assert (meta["pagination"]["last_page"], meta["pagination"]["next_page"]) == (2, None)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "", "²", "1" * 10])
def test_an_invalid_page_or_page_size_is_refused(text: str) -> None:
    for parameters in ({"page": text, "per_page": None}, {"page": None, "per_page": text}):
        with pytest.raises(ApiError) as refused:
            page_of([1], **parameters)
        assert refused.value.code == "invalid_input"


def test_sorting_by_several_fields_is_stable_and_an_invalid_field_is_refused() -> None:
    items = [("b", 1), ("a", 2), ("b", 3), ("a", 4)]
    fields = {"name": lambda item: item[0], "id": lambda item: item[1]}

    assert sort_items(items, [], fields) == items
    assert sort_items(items, ["name"], fields) == [("a", 2), ("a", 4), ("b", 1), ("b", 3)]
    assert sort_items(items, ["name:asc", "id:desc"], fields) == [("a", 4), ("a", 2), ("b", 3), ("b", 1)]
    for wrong in ("size", "name:up", ""):
        with pytest.raises(ApiError):
            sort_items(items, [wrong], fields)
