"""The heads of all lanes as a text."""

from __future__ import annotations

import pytest

from events.ids import LANES, SEQ_MAX
from hydracore.audit.heads_token import decode_heads, encode_heads

HEADS = [0, 1, 127, 128, 129, 16_383, 16_384, SEQ_MAX, *range(LANES - 8)]


def test_all_heads_are_encoded_in_a_short_text_of_letters_digits_and_hyphens() -> None:
    text = encode_heads(HEADS)

    assert decode_heads(text) == HEADS
    assert text.replace("-", "").replace("_", "").isalnum()
    assert len(encode_heads([100_000] * LANES)) == 4 * LANES


@pytest.mark.parametrize(
    "text", ["A", "A" * 5, encode_heads(HEADS)[:-4], encode_heads(HEADS) + "AAAA", encode_heads([SEQ_MAX + 1] * LANES)]
)
def test_a_text_that_does_not_encode_the_heads_of_all_lanes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        decode_heads(text)
