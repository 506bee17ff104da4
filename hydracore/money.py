"""Amounts of US dollars as texts: exact, and never in the notation with an exponent."""

from __future__ import annotations

from decimal import Decimal


def decimal_text(amount: Decimal) -> str:
    """`amount` without an exponent and without zeros at the end: `0.00005`, `12`, `0`."""
    return format(amount.normalize() + 0, "f")


def number_text(number: float) -> str:
    """The decimal text of a JSON number, as its writer meant it: 0.1 is one tenth."""
    return decimal_text(Decimal(repr(number)))
