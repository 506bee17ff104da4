"""How much work documents are, counted and not timed: twice the document may be some twice the work, whatever is in it.

It is counted in the interpreter's own steps, and where one of them may be much work, by the values themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from hydracore.documents import MasksOutdated, masked, merge_patch, unmasked

#: The work for twice as much is at most this many times as much; it would be four times where each were compared with each.
GROWTH_MAX = 2.6


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
    except MasksOutdated:
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
