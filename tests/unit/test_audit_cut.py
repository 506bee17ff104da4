"""A cut through the log as a text."""

from __future__ import annotations

import pytest

from events.ids import LANES, SEQ_MAX
from hydracore.audit.cut import cut_text, read_cut

HEADS = [0, 1, 127, 128, 129, 16_383, 16_384, SEQ_MAX, *range(LANES - 8)]


def test_a_cut_says_all_heads_in_few_letters() -> None:
    text = cut_text(HEADS)

    assert read_cut(text) == HEADS
    assert text.replace("-", "").replace("_", "").isalnum()
    assert len(cut_text([100_000] * LANES)) == 4 * LANES


@pytest.mark.parametrize(
    "text", ["A", "A" * 5, cut_text(HEADS)[:-4], cut_text(HEADS) + "AAAA", cut_text([SEQ_MAX + 1] * LANES)]
)
def test_what_is_no_cut_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_cut(text)
