"""Dollars as exact texts."""

from decimal import Decimal

import pytest

from hydracore.money import decimal_text, number_text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0E-12", "0"),
        ("-0.0", "0"),
        ("100", "100"),
        ("1E+3", "1000"),
        ("0.000050000000", "0.00005"),
        ("1E-12", "0.000000000001"),
    ],
)
def test_an_amount_is_written_without_an_exponent_or_trailing_zeros(amount: str, text: str) -> None:
    assert decimal_text(Decimal(amount)) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0.1, "0.1"), (5.0, "5"), (1e-7, "0.0000001"), (1e9, "1000000000"), (0.0, "0"), (-0.0, "0")]
)
def test_a_json_number_becomes_the_decimal_text_that_was_written(number: float, text: str) -> None:
    assert number_text(number) == text
