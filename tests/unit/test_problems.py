"""Validation of values: the same results, messages and types of problems as pydantic has, for any input."""

import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Meta

from hydracore.problems import Invalid, Problem, read


class Inner(msgspec.Struct):
    size: int


class Outer(msgspec.Struct, kw_only=True):
    text: str
    flag: bool = False
    count: Annotated[int, Meta(ge=1, le=100)] = 5
    ratio: Annotated[float, Meta(gt=0, lt=2)] | None = None
    ident: uuid.UUID | None = None
    words: list[str] | None = None
    switches: dict[str, bool] | None = None
    choice: Literal["a", "b", "c"] = "a"
    short: Annotated[str, Meta(min_length=1, max_length=5)] = "x"
    lower: Annotated[str, Meta(pattern="^[a-z]+$")] = "x"
    inner: Inner | None = None
    amount: Decimal | None = None


A_UUID = "198bc4a4-ca9d-4a27-bbcc-83824e04cd08"

spoilt_uuids = st.builds(
    lambda text, at, new, cut, wrapping: wrapping.format(text[:at] + new + text[at + cut :]),
    st.sampled_from([A_UUID, A_UUID.replace("-", ""), A_UUID.upper()]),
    st.integers(0, 36),
    st.sampled_from(["", "-", "0", "x", "--", "}", "00000000000000"]),
    st.integers(0, 2),
    st.sampled_from(["{0}", "urn:uuid:{0}", "{{{0}}}", "{0}{0}"]),
)
# Whole numbers stay within 64 bits: pydantic has several messages for larger ones, which are not reproduced.
numbers = st.integers(-(2**53), 2**53) | st.floats(-1e15, 1e15) | st.just(float("nan")) | st.just(float("inf"))
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
words = st.sampled_from(
    ["yes", "Off", "T", "1", "0", "5", " 5 ", "1_0", "1.0", "1.5", "1e3", "٣", "nan", "abc", "abc\n"]
)
scalars = st.none() | st.booleans() | numbers | texts | words | spoilt_uuids
values = st.recursive(scalars, lambda each: st.lists(each, max_size=3) | st.dictionaries(texts, each, max_size=3))
# pydantic places non-ASCII characters of a wrong UUID by their UTF-8 bytes, and not consistently.
idents = values.filter(lambda value: not isinstance(value, str) or value.isascii())
fields = {**dict.fromkeys(Outer.__struct_fields__, values), "ident": idents | spoilt_uuids}
objects = st.fixed_dictionaries({}, optional=fields)


@pytest.fixture(scope="module", name="judged")
def judged_fixture() -> Callable[..., Any]:
    from tests.pydantic_reference import pydantic_verdict  # noqa: PLC0415 - costly

    return pydantic_verdict


@given(objects)
@example({"text": "x", "amount": 0.5})
@example({"text": "x", "amount": 0.1 + 0.2})
@example({"text": "x", "amount": -1e-9})
@example({"text": "x", "amount": True})
@example({"text": "x", "ident": "{" + A_UUID.replace("-", "") + "}"})
@example({"text": "x", "inner": {"size": "1"}, "switches": {"a": "maybe", "b": 2}})
def test_any_object_is_validated_with_the_same_result_and_problems_as_by_pydantic(
    judged: Callable[..., Any], raw: dict[str, Any]
) -> None:
    expected, problems = judged(raw)

    try:
        result = msgspec.structs.asdict(read(raw, Outer))
        found: list[Problem] = []
    except Invalid as invalid:
        result = None
        found = invalid.problems

    assert [tuple(problem) for problem in found] == problems
    if expected is not None:
        assert result is not None
        assert msgspec.to_builtins(result) == msgspec.to_builtins(expected)


@given(values.filter(lambda value: not isinstance(value, dict)))
def test_a_value_that_is_not_an_object_is_refused_as_such(raw: Any) -> None:
    with pytest.raises(Invalid) as raised:
        read(raw, Outer)

    assert [problem.type for problem in raised.value.problems] == ["model_attributes_type"]


@given(st.builds(Outer, text=texts, short=st.just("abc"), lower=st.just("abc"), choice=st.just("b"), count=st.just(7)))
def test_a_value_that_msgspec_accepts_is_read_the_same_way(value: Outer) -> None:
    raw = msgspec.to_builtins(value)

    assert read(raw, Outer) == msgspec.convert(raw, Outer)


@pytest.mark.parametrize(
    ("raw", "declared", "problem"),
    [
        ("a\0b", str, ((), "Value error, text must not contain the NUL character", "value_error")),
        (
            "a\ud800",
            str,
            ((), "Input should be a valid string, unable to parse raw data as a unicode string", "string_unicode"),
        ),
        (
            ["a"] * 3,
            Annotated[list[str], Meta(max_length=2)],
            ((), "List should have at most 2 items after validation, not 3", "too_long"),
        ),
        (
            [],
            Annotated[list[str], Meta(min_length=1)],
            ((), "List should have at least 1 item after validation, not 0", "too_short"),
        ),
        (
            {"size": 1, "sise": 2},
            msgspec.defstruct("Strict", [("size", int)], forbid_unknown_fields=True),
            (("sise",), "Extra inputs are not permitted", "extra_forbidden"),
        ),
        (
            "9" * 5000,
            int,
            ((), "Unable to parse input string as an integer, exceeded maximum size", "int_parsing_size"),
        ),
        (10**400, float, ((), "Input should be a finite number", "finite_number")),
    ],
    ids=lambda value: value[2] if isinstance(value, tuple) else "",
)
def test_further_invalid_values_have_the_right_message_and_type(
    raw: Any, declared: Any, problem: tuple[Any, ...]
) -> None:
    with pytest.raises(Invalid) as raised:
        read(raw, declared)

    assert [tuple(each) for each in raised.value.problems] == [problem]


def test_a_named_check_runs_on_texts_only_and_reports_the_place_of_its_field() -> None:
    class Order(msgspec.Struct):
        region: Annotated[str, Meta(extra={"check": "region"})]
        tier: Annotated[str, Meta(extra={"check": "tier"})] | None = None

    checks = {"region": lambda text: f"unknown region {text}", "tier": lambda _: None}

    with pytest.raises(Invalid) as raised:
        read({"region": "mars", "tier": "big"}, Order, loc=("body",), checks=checks)
    with pytest.raises(Invalid) as wrong_type:
        read({"region": 5}, Order, checks=checks)

    assert raised.value.problems == [Problem(("body", "region"), "Value error, unknown region mars", "value_error")]
    assert [problem.type for problem in wrong_type.value.problems] == ["string_type"]
