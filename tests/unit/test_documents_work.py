"""How much work documents are, counted and not timed: twice the document may be some twice the work, whatever is in it.

It is counted in the interpreter's own steps, and where one of them may be much work, by the values themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product
from math import isqrt
from types import FrameType
from typing import Any, ClassVar

import pytest

from hydracore.documents import MasksUnmatched, masked, merge_patch, unmasked
from hydracore.item_matching import COMPARISONS_MAX

#: The work for twice as much is at most this many times as much; it would be four times where each were compared with each.
GROWTH_MAX = 2.6

#: Python's hash of a number is its remainder by this, a prime.
HASH_MODULUS = sys.hash_info.modulus


def steps(work: Callable[[], object]) -> int:
    """How many steps of the interpreter `work` takes in this project's code."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if not frame.f_globals.get("__name__", "").startswith("hydracore."):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except MasksUnmatched:
        pass
    finally:
        sys.settrace(before)
    return count


#: What is given, and what is stored where it is to go; each has some `size` values.
SHAPES: dict[str, Callable[[int], tuple[Any, Any]]] = {
    "one_mask_beside_many": lambda size: ({"a": ["****"]}, {"a": [*range(size)]}),
    "many_masks_beside_one": lambda size: ({"a": ["****"] * size}, {"a": [1]}),
    "changed_items": lambda size: (
        [{"x": -n, "same": 1, "token": "****"} for n in range(size)],
        [{"x": n, "same": 1, "token": f"{n}"} for n in range(size)],
    ),
    "changed_items_by_ids": lambda size: (
        [{"id": n % 20, "x": -n, "token": "****"} for n in range(size)],
        [{"id": n % 20, "x": n, "token": f"{n}"} for n in range(size)],
    ),
    "many_versions_of_one_list": lambda size: ([["****", n] for n in range(size)], [[*range(size)]]),
    "many_versions_of_one_object": lambda size: (
        [{"value": "****", "n": n} for n in range(size)],
        [{f"x{n}": n for n in range(size)}],
    ),
    "equal_items": lambda size: ([{"token": "****"}] * size, [{"token": "x"}] * size),
    "names": lambda size: ({f"name{n}": "****" for n in range(size)}, {f"token{n}": "x" for n in range(size)}),
    "lists_in_lists": lambda size: (
        [[[["****", n]], "****"] for n in range(size)],
        [[[["x", n]], "y"] for n in range(size)],
    ),
    "objects_in_objects": lambda size: (
        {f"a{n}": {"b": {"token": "****"}} for n in range(size)},
        {f"a{n}": {"b": {"token": "x"}} for n in range(size)},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_twice_the_document_is_twice_the_work(shape: str) -> None:
    def work(size: int) -> int:
        given, stored = SHAPES[shape](size)
        return steps(lambda: merge_patch(masked(stored), unmasked(given, stored)))

    assert work(300) < GROWTH_MAX * work(150)


class CountedInt(int):
    """A number that counts how often such are compared."""

    compared: ClassVar[int] = 0

    def __eq__(self, other: object) -> bool:
        CountedInt.compared += 1
        return int.__eq__(self, other)

    __hash__ = int.__hash__


class CountedFloat(float):
    compared: ClassVar[int] = 0

    def __eq__(self, other: object) -> bool:
        CountedFloat.compared += 1
        return float.__eq__(self, other)

    __hash__ = float.__hash__


@pytest.mark.parametrize(
    ("counted", "numbers"),
    [
        (CountedInt, [CountedInt(1 + n * HASH_MODULUS) for n in range(200)]),
        (CountedFloat, [CountedFloat(2.0 ** (n * HASH_MODULUS.bit_length())) for n in range(-8, 9)]),
    ],
    ids=["integers", "fractions"],
)
def test_numbers_that_hash_alike_are_not_compared_with_each_other(
    counted: type[CountedInt | CountedFloat], numbers: list[Any]
) -> None:
    assert len({hash(number) for number in numbers}) == 1
    counted.compared = 0

    unmasked({"a": ["****", *numbers]}, {"a": ["x", *numbers]})

    assert counted.compared <= len(numbers)


class CountedText(str):
    """A text that counts how often such are read as names."""

    read: ClassVar[int] = 0
    __slots__ = ()

    def lower(self) -> str:
        CountedText.read += 1
        return super().lower()


@pytest.mark.parametrize(("half", "other"), [("value", "name"), ("url", "type")])
def test_what_says_that_its_other_half_is_a_secret_is_read_once(half: str, other: str) -> None:
    spellings = {"".join(letters) for letters in product(*zip(half, half.upper(), strict=True))}
    document = {other: CountedText("x" * 500), **dict.fromkeys(spellings, "y")}
    CountedText.read = 0

    assert masked(document) == document

    assert CountedText.read == 1


def test_no_more_changed_items_of_a_document_are_compared_for_being_in_several_lists() -> None:
    size = isqrt(COMPARISONS_MAX)
    stored = {
        name: [{"a": f"a{n}", "b": f"b{n}", "token": f"{name}-{n}"} for n in range(size)]
        for name in ("first", "second")
    }
    given = masked(stored)
    for item in [*given["first"], *given["second"]]:
        item["a"] += " changed"

    with pytest.raises(MasksUnmatched) as caught:
        unmasked(given, stored)

    assert caught.value.paths == tuple(("second", n, "token") for n in range(size))
    assert unmasked({"first": given["first"]}, stored)["first"][-1]["token"] == f"first-{size - 1}"


def test_a_refusal_does_not_repeat_a_long_name_for_every_mask_below_it() -> None:
    with pytest.raises(MasksUnmatched) as caught:
        unmasked({"token" * 100: ["****"] * 100}, {})

    assert len(caught.value.paths) == 100
    assert len(str(caught.value)) < 100
