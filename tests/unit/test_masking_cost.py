"""How much work masking and unmasking take, counted and not timed: about twice the work for twice the document, whatever is in it.

Work is counted in steps of the interpreter; where one step may be much work, the values count their own uses.
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

#: Twice the document may take at most this many times the work; comparing each item with each other would take four times.
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


#: The document that is sent, and the one that is stored; each has about `size` values.
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
def test_masking_and_unmasking_twice_the_document_take_about_twice_the_work(shape: str) -> None:
    def work(size: int) -> int:
        given, stored = SHAPES[shape](size)
        return steps(lambda: merge_patch(masked(stored), unmasked(given, stored)))

    assert work(300) < GROWTH_MAX * work(150)


class CountedInt(int):
    """A number whose class counts comparisons."""

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
def test_numbers_with_equal_hashes_are_not_all_compared_with_each_other(
    counted: type[CountedInt | CountedFloat], numbers: list[Any]
) -> None:
    assert len({hash(number) for number in numbers}) == 1
    counted.compared = 0

    unmasked({"a": ["****", *numbers]}, {"a": ["x", *numbers]})

    assert counted.compared <= len(numbers)


class CountedText(str):
    """A text whose class counts how often one is read as a name."""

    read: ClassVar[int] = 0
    __slots__ = ()

    def lower(self) -> str:
        CountedText.read += 1
        return super().lower()


@pytest.mark.parametrize(("half", "other"), [("value", "name"), ("url", "type")])
def test_the_text_that_decides_whether_its_neighbours_are_secret_is_read_only_once(half: str, other: str) -> None:
    spellings = {"".join(letters) for letters in product(*zip(half, half.upper(), strict=True))}
    document = {other: CountedText("x" * 500), **dict.fromkeys(spellings, "y")}
    CountedText.read = 0

    assert masked(document) == document

    assert CountedText.read == 1


def test_the_limit_on_comparisons_of_changed_items_is_for_the_whole_document() -> None:
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
