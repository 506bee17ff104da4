"""Label syntax and selectors, term by term and on generated labels."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydracore.cloudsim.labels import LABELS_MAX, check_labels, parse_selector
from hydracore.cloudsim.problems import ApiError

ENDS = string.ascii_letters + string.digits
names = st.builds(
    lambda first, middle, last: first + middle + last,
    st.sampled_from(ENDS),
    st.text(ENDS + "-_.", max_size=61),
    st.sampled_from(ENDS),
)
values = st.one_of(st.just(""), st.sampled_from(ENDS), names)


@given(st.dictionaries(names, values, max_size=5))
def test_valid_labels_are_accepted_and_match_a_selector_made_from_them(labels: dict[str, str]) -> None:
    check_labels(labels)

    selected = parse_selector(",".join(f"{key}=={value}" for key, value in labels.items()))

    assert selected(labels)


@given(st.text(max_size=70))
def test_a_label_value_is_accepted_exactly_when_its_length_and_characters_are_allowed(text: str) -> None:
    allowed = len(text) <= 63 and set(text) <= set(ENDS + "-_.") and (not text or {text[0], text[-1]} <= set(ENDS))

    if allowed:
        check_labels({"key": text})
    else:
        with pytest.raises(ApiError):
            check_labels({"key": text})


@pytest.mark.parametrize("key", ["", "-a", "a-", "a b", "a" * 64, "ä", "a\n", "/a", "A/b", "prefix//a"])
def test_an_invalid_label_key_is_refused(key: str) -> None:
    with pytest.raises(ApiError) as refused:
        check_labels({key: "value"})

    assert refused.value.code == "invalid_input"


def test_a_label_key_may_have_a_prefix_and_the_number_of_labels_is_limited() -> None:
    check_labels({"example.com/name": "x"})
    check_labels({f"key{number}": "x" for number in range(LABELS_MAX)})

    with pytest.raises(ApiError):
        check_labels({f"key{number}": "x" for number in range(LABELS_MAX + 1)})


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ("", {}, True),
        ("k", {"k": ""}, True),
        ("k", {}, False),
        ("!k", {}, True),
        ("!k", {"k": "v"}, False),
        ("k==v", {"k": "v"}, True),
        ("k=v", {"k": "v"}, True),
        ("k = v", {"k": "v"}, True),
        ("k==", {"k": ""}, True),
        ("k==v", {"k": "w"}, False),
        ("k==v", {}, False),
        ("k!=v", {"k": "w"}, True),
        ("k!=v", {}, True),
        ("k!=v", {"k": "v"}, False),
        ("k in (v, w)", {"k": "w"}, True),
        ("k in (v,w)", {}, False),
        ("k notin (v,w)", {"k": "x"}, True),
        ("k notin (v,w)", {}, True),
        ("k notin (v,w)", {"k": "v"}, False),
        ("a==1,b in (2,3),!c", {"a": "1", "b": "3"}, True),
        ("a==1,b in (2,3),!c", {"a": "1", "b": "3", "c": ""}, False),
        ("example.com/k==v", {"example.com/k": "v"}, True),
    ],
)
def test_a_selector_of_each_supported_form_matches_the_right_labels(
    selector: str, labels: dict[str, str], *, expected: bool
) -> None:
    assert parse_selector(selector)(labels) is expected


@pytest.mark.parametrize(
    "selector", ["==v", "k===v", "k==v==w", "!k==v", "k,", ",", "k in v", "k in (a", "a b", "k==-", "!"]
)
def test_a_malformed_selector_is_refused(selector: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_selector(selector)

    assert re.search("label_selector", refused.value.message)
