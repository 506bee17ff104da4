"""Documents of all kinds that are shown with masked secrets and sent back: unchanged, changed in one place, or rearranged."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hydracore.documents import MasksUnmatched, is_mask, masked, merge_patch, unmasked

URL = "https://user:hunter2hunter2@db.example/x"

#: Several have the same mask, some are secrets under any name, and some mark the value beside them as a secret.
TEXTS = (
    *("short1", "short2", "longlonglong-aaaa", "longlonglong-bbbb", "longlonglong-cccc-aaaa"),
    *(URL, "https://other:hunter2hunter2@db.example/x", "https://a:b@c"),
    *("webhook", "https://webhook@token.example/x", "API_KEY", "x"),
)
#: Texts that look like masks, for places where there is no secret.
LIKE_MASKS = ("****", "****le/x", "****aaaa", "********")
NAMES = ("id", "note", "token", "Secret", "type", "url", "name", "key", "value")

DOCUMENTS = settings(max_examples=60)


def documents(*texts: str) -> st.SearchStrategy[Any]:
    leaves = st.sampled_from([*texts, 1, True, 1.0, 0, False, None, 2.5])
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(NAMES), inner, min_size=1, max_size=4)
        ),
        max_leaves=12,
    )


def lists(*texts: str) -> st.SearchStrategy[list[Any]]:
    return st.lists(documents(*texts), min_size=1, max_size=5)


def stored_of(value: Any) -> Any:
    """`value` as it is stored at first; a text that looks like a mask in the place of a secret is replaced before."""
    try:
        return merge_patch({}, unmasked(value, {}))
    except MasksUnmatched as refusal:
        value = copy.deepcopy(value)
        for *way, last in refusal.paths:
            reduce(getitem, way, value)[last] = "short3"
        return merge_patch({}, value)


def strictly(value: Any) -> str:
    """Tells `1`, `1.0` and `true` apart."""
    return json.dumps(value, sort_keys=True)


def objects_in(value: Any, *, below_an_id: bool = False) -> Iterator[dict[str, Any]]:
    """The objects in `value` that are no part of an item's id."""
    if isinstance(value, dict):
        if not below_an_id:
            yield value
        for name, item in value.items():
            yield from objects_in(item, below_an_id=below_an_id or name == "id")
    elif isinstance(value, list):
        for item in value:
            yield from objects_in(item, below_an_id=below_an_id)


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)
    elif isinstance(value, str):
        yield value


@DOCUMENTS
@given(documents(*TEXTS, *LIKE_MASKS), lists(*TEXTS, *LIKE_MASKS))
def test_a_masked_document_that_is_sent_back_unchanged_changes_nothing(value: Any, items: list[Any]) -> None:
    document, items = stored_of({"document": value}), stored_of(items)

    assert strictly(merge_patch(document, unmasked(masked(document), document))) == strictly(document)
    assert strictly(unmasked(masked(items), items)) == strictly(items)


@DOCUMENTS
@given(lists(*TEXTS, *LIKE_MASKS), st.data())
def test_a_masked_document_that_is_sent_back_with_one_change_changes_nothing_else(
    items: list[Any], data: st.DataObject
) -> None:
    stored = stored_of(items)
    shown, changed = masked(stored), copy.deepcopy(stored)
    count = len(list(objects_in(stored)))
    assume(count)
    at = data.draw(st.integers(0, count - 1))

    for each in (shown, changed):
        list(objects_in(each))[at]["extra"] = "new"

    assert strictly(unmasked(shown, stored)) == strictly(changed)


@DOCUMENTS
@given(lists(*TEXTS), st.data())
def test_no_mask_is_stored_however_a_masked_document_is_rearranged(items: list[Any], data: st.DataObject) -> None:
    stored = stored_of(items)
    shown = masked(stored)
    made = data.draw(lists(*TEXTS, *texts_in(shown)))

    for value, kept in ((made, stored), ({"document": made}, {"document": stored})):
        try:
            result = unmasked(value, kept)
        except MasksUnmatched:
            continue
        assert not [text for text in texts_in(result) if is_mask(text)]


@DOCUMENTS
@given(lists(*TEXTS), st.data())
def test_items_with_unique_ids_keep_their_secrets_in_any_order_and_selection(
    items: list[Any], data: st.DataObject
) -> None:
    stored = stored_of([{"id": number, "item": item} for number, item in enumerate(items)])
    order = data.draw(st.lists(st.sampled_from(range(len(stored))), unique=True))
    shown = masked(stored)

    assert unmasked([shown[at] for at in order], stored) == [stored[at] for at in order]


@pytest.mark.parametrize(
    "stored",
    [
        [{"id": URL, "note": "n"}],
        [{"Secret": [{"id": "short1"}, {"id": "short2"}, {"id": "longlonglong-aaaa"}]}],
        [{"id": {"token": "short1"}, "token": "short2"}, {"id": {"token": "short3"}, "token": "short4"}],
        [{"id": "x", "token": "short1"}, {"id": "x", "token": "short2"}],
        [{"id": "x", "token": "longlonglong-aaaa"}, {"id": "x", "token": "longlonglong-bbbb"}],
        [{"id": 1, "token": "short1"}, {"id": True, "token": "short2"}, {"id": "1", "token": "short3"}],
        [{"type": "https://webhook@token.example/x", "url": "short1"}],
    ],
    ids=json.dumps,
)
def test_items_with_ambiguous_ids_keep_their_secrets_when_they_are_sent_back_unchanged(stored: Any) -> None:
    assert strictly(unmasked(masked(stored), stored)) == strictly(stored)
    document = {"list": stored}
    assert strictly(merge_patch(document, unmasked(masked(document), document))) == strictly(document)


def test_an_integer_id_matches_the_equal_float_and_not_the_boolean() -> None:
    stored = [{"id": True, "token": "short1"}, {"id": 1.0, "token": "short2"}]

    assert unmasked([{"id": 1, "token": "****"}], stored) == [{"id": 1, "token": "short2"}]


A = {"id": "x", "note": "a", "token": "short1"}
B = {"id": "x", "note": "b", "token": "short2"}
NEW = {"id": "x", "note": "new", "token": "short3"}


@pytest.mark.parametrize("without", [(), ("id",)], ids=["of_one_id", "without_ids"])
def test_items_without_unique_ids_are_matched_by_content_when_added_removed_moved_or_changed(
    without: tuple[str, ...],
) -> None:
    a, b, new = [{name: item for name, item in each.items() if name not in without} for each in (A, B, NEW)]
    stored = [a, b]
    shown_a, shown_b = masked(stored)

    assert unmasked([shown_b], stored) == [b]
    assert unmasked([shown_b, shown_a], stored) == [b, a]
    assert unmasked([new, shown_a, shown_b], stored) == [new, a, b]
    assert unmasked([shown_b, new], stored) == [b, new]
    assert unmasked([shown_a | {"note": "b"}, shown_b], stored) == [a | {"note": "b"}, b]
    with pytest.raises(MasksUnmatched):
        unmasked([shown_a | {"note": "c"}, shown_b | {"note": "d"}], stored)
    assert unmasked([shown_a | {"note": "c"}, shown_b, new], stored) == [a | {"note": "c"}, b, new]


def test_items_whose_secrets_have_the_same_mask_are_matched_by_their_other_fields() -> None:
    mail, shop = (
        {"name": name, "token": secret, "host": f"{name}-1"} for name, secret in (("mail", "aaa"), ("shop", "bbb"))
    )
    new = {"name": "new", "token": "ccc"}
    shown_mail, shown_shop = masked([mail, shop])

    moved = [shown_shop | {"host": "shop-2"}, shown_mail | {"host": "mail-2"}]

    assert unmasked(moved, [mail, shop]) == [shop | {"host": "shop-2"}, mail | {"host": "mail-2"}]
    assert unmasked([shown_shop | {"host": "shop-2"}, new], [mail, shop]) == [shop | {"host": "shop-2"}, new]
    with pytest.raises(MasksUnmatched):
        unmasked([{"name": "a", "token": "****"}, {"name": "b", "token": "****"}], [mail, shop])


@pytest.mark.parametrize(
    ("given_back", "paths"),
    [
        ([{"id": "x", "token": "****"}], ((0, "token"),)),
        ([{"id": "x", "token": "****"}, {"id": "y", "token": "****"}], ((0, "token"), (1, "token"))),
        ([{"id": "x", "token": "****"}] * 3, ((0, "token"), (1, "token"), (2, "token"))),
    ],
    ids=["one_removed", "one_renamed", "one_added"],
)
def test_an_ambiguous_mask_is_refused_with_its_path(given_back: list[Any], paths: Any) -> None:
    stored = [{"id": "x", "token": "short1"}, {"id": "x", "token": "short2"}]

    with pytest.raises(MasksUnmatched) as caught:
        unmasked(given_back, stored)

    assert caught.value.paths == paths


@pytest.mark.parametrize(
    "made",
    [
        [{"id": "b", "url": "****le/x"}],
        [{"url": "****le/x"}],
        [{"id": "a", "address": "****le/x"}],
        [{"id": "a", "url": ["****le/x"]}],
        ["****le/x"],
    ],
    ids=json.dumps,
)
def test_a_mask_that_was_moved_to_another_place_is_refused(made: list[Any]) -> None:
    with pytest.raises(MasksUnmatched):
        unmasked(made, [{"id": "a", "url": URL}])


def test_an_id_that_is_a_secret_is_accepted_masked_or_in_plain_text() -> None:
    other = "https://other:hunter2hunter2@db.example/x"
    stored = [{"id": URL, "token": "short1"}, {"id": other, "token": "short2"}]
    shown = masked(stored)

    assert unmasked([shown[0], {"id": other, "token": "****"}], stored) == stored
    assert unmasked([{"id": other, "token": "****"}, {"id": URL, "token": "****"}], stored) == stored[::-1]


def test_changed_items_of_several_lists_are_matched_by_their_other_fields() -> None:
    stored = {
        f"list_{number}": [{"a": f"a{item}", "b": f"b{item}", "token": f"secret-{number}-{item}"} for item in range(40)]
        for number in range(10)
    }
    given = masked(stored)
    for items in given.values():
        for item in items:
            item["a"] += " changed"

    restored = unmasked(given, stored)

    assert [item["token"] for items in restored.values() for item in items] == [
        item["token"] for items in stored.values() for item in items
    ]
