"""Reads single untrusted values, such as texts, numbers and UUIDs, with pydantic's leniency and its error messages.

A boolean is no number here, though it is to pydantic: a client that sends `false` for a budget means no
limit, but as the number 0 it would mean no budget at all.

`hydracore.problems` walks documents and calls this for their leaves.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from uuid import UUID

from msgspec import inspect as types

from hydracore.wording import plural

TRUE_WORDS: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
FALSE_WORDS: Final = frozenset({"0", "false", "f", "no", "n", "off"})
UUID_GROUPS: Final = (8, 4, 4, 4, 12)
#: The length of the usual form, and of the longest one (with `urn:uuid:`).
UUID_LENGTH: Final = 36
UUID_LENGTH_MAX: Final = 45
INT_TEXT: Final = re.compile(r"\s*[+-]?\d+(_\d+)*(\.0+)?\s*")
UUID_TEXT: Final = re.compile(r"[0-9A-Fa-f]{32}|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
#: Longer number texts are refused unread, as pydantic does: reading them takes quadratic time.
INT_TEXT_LENGTH_MAX: Final = 4300


class InvalidScalar(Exception):
    """A value does not have its declared type. `msg`: the error message. `type`: pydantic's code for it."""

    def __init__(self, msg: str, kind: str) -> None:
        super().__init__(msg)
        self.msg = msg
        self.type = kind


def read_scalar(value: Any, info: types.Type) -> Any:
    """`value` as the type `info`. Raises `InvalidScalar` with the first problem."""
    if isinstance(info, types.StrType):
        return _read_str(value, info)
    _refuse_lone_surrogates(value)
    match info:
        case types.IntType():
            return _require_bounds(_read_int(value), info)
        case types.FloatType():
            return _require_bounds(_read_float(value), info)
        case types.BoolType():
            return _read_bool(value)
        case types.UUIDType():
            return _read_uuid(value)
        case types.DecimalType():
            return _read_decimal(value)
        case types.LiteralType():
            return _read_literal(value, info)
        case _:
            # A type that we have not declared before: it needs a reader, rather than to be accepted unchecked.
            raise TypeError(f"No reader for {info}")


def _read_str(value: Any, info: types.StrType) -> str:
    if not isinstance(value, str):
        raise InvalidScalar("Input should be a valid string", "string_type")
    _refuse_lone_surrogates(value)
    if info.min_length is not None and len(value) < info.min_length:
        raise InvalidScalar(f"String should have at least {plural(info.min_length, 'character')}", "string_too_short")
    if info.max_length is not None and len(value) > info.max_length:
        raise InvalidScalar(f"String should have at most {plural(info.max_length, 'character')}", "string_too_long")
    # In pydantic `$` matches only the very end; in Python also before a final line feed.
    if info.pattern is not None and not re.search(re.sub(r"\$$", r"\\Z", info.pattern), value):
        raise InvalidScalar(f"String should match pattern '{info.pattern}'", "string_pattern_mismatch")
    if "\0" in value:
        # Our own rule: PostgreSQL cannot store the character, and no name or prompt needs it.
        raise InvalidScalar("Value error, text must not contain the NUL character", "value_error")
    return value


def _read_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidScalar("Input should be a finite number", "finite_number")
        if not value.is_integer():
            raise InvalidScalar(
                "Input should be a valid integer, got a number with a fractional part", "int_from_float"
            )
        return int(value)
    if not isinstance(value, str):
        raise InvalidScalar("Input should be a valid integer", "int_type")
    if len(value) > INT_TEXT_LENGTH_MAX:
        raise InvalidScalar("Unable to parse input string as an integer, exceeded maximum size", "int_parsing_size")
    if not INT_TEXT.fullmatch(value) or not value.isascii():
        raise InvalidScalar("Input should be a valid integer, unable to parse string as an integer", "int_parsing")
    return int(value.strip().split(".")[0])


def _read_float(value: Any) -> float:
    if isinstance(value, str):
        try:
            number = float(value if value.isascii() else "")
        except ValueError:
            raise InvalidScalar(
                "Input should be a valid number, unable to parse string as a number", "float_parsing"
            ) from None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    else:
        raise InvalidScalar("Input should be a valid number", "float_type")
    if not math.isfinite(number):
        # Our own rule: JSON has no such number, so no answer could show it again.
        raise InvalidScalar("Input should be a finite number", "finite_number")
    return number


def _require_bounds(number: Any, info: types.IntType | types.FloatType) -> Any:
    if info.ge is not None and number < info.ge:
        raise InvalidScalar(f"Input should be greater than or equal to {info.ge}", "greater_than_equal")
    if info.gt is not None and number <= info.gt:
        raise InvalidScalar(f"Input should be greater than {info.gt}", "greater_than")
    if info.le is not None and number > info.le:
        raise InvalidScalar(f"Input should be less than or equal to {info.le}", "less_than_equal")
    if info.lt is not None and number >= info.lt:
        raise InvalidScalar(f"Input should be less than {info.lt}", "less_than")
    return number


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    # A float without a fraction counts as an integer; any other cannot be a boolean.
    if isinstance(value, str | int) or (isinstance(value, float) and value.is_integer()):
        word = str(int(value) if isinstance(value, float) else value).lower()
        if word in TRUE_WORDS | FALSE_WORDS:
            return word in TRUE_WORDS
        raise InvalidScalar("Input should be a valid boolean, unable to interpret input", "bool_parsing")
    raise InvalidScalar("Input should be a valid boolean", "bool_type")


def _read_decimal(value: Any) -> Decimal:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise InvalidScalar("Decimal input should be an integer, float, string or Decimal object", "decimal_type")
    try:
        # A float is taken for its shortest decimal text, because 0.1 is meant as one tenth.
        number = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        raise InvalidScalar("Input should be a valid decimal", "decimal_parsing") from None
    if not number.is_finite():
        raise InvalidScalar("Input should be a finite number", "finite_number")
    return number


def _read_literal(value: Any, info: types.LiteralType) -> Any:
    if value in info.values:
        return value
    *head, last = (repr(choice) for choice in info.values)
    choices = f"{', '.join(head)} or {last}" if head else last
    raise InvalidScalar(f"Input should be {choices}", "literal_error")


def _read_uuid(value: Any) -> UUID:
    if not isinstance(value, str):
        raise InvalidScalar("UUID input should be a string, bytes or UUID object", "uuid_type")
    text = _without_uuid_wrapping(value)
    if UUID_TEXT.fullmatch(text) and (text == value or "-" in text):
        return UUID(text)
    raise InvalidScalar(f"Input should be a valid UUID, {_uuid_error(value, text)}", "uuid_parsing")


def _without_uuid_wrapping(value: str) -> str:
    """The UUID's text without braces or `urn:uuid:` around it."""
    if len(value) == UUID_LENGTH:
        return value
    if value.startswith("{") and value.endswith("}"):
        return value[1:-1]
    return value.removeprefix("urn:uuid:")


def _uuid_error(value: str, text: str) -> str:
    """What is wrong, as the parser behind pydantic says it (Rust's uuid crate)."""
    length = len(value.encode(errors="replace"))
    if length > UUID_LENGTH_MAX:
        return f"invalid length: found {length}"
    # Positions count from the start of `value`, or of `text` where that has the usual length, as in that parser.
    offset = 0 if len(text) == UUID_LENGTH else value.index(text)
    hyphens: list[int] = []
    for index, character in enumerate(text):
        if character == "-":
            hyphens.append(index)
        elif character not in "0123456789abcdefABCDEF":
            return f"invalid character: found `{character}` at {index + offset}"
    if not hyphens and text == value and length != UUID_LENGTH:
        return f"invalid length: found {length}"
    if len(hyphens) != len(UUID_GROUPS) - 1:
        return f"invalid group count: expected {len(UUID_GROUPS)}, found {len(hyphens) + 1}"
    start = 0
    for group, (expected, end) in enumerate(zip(UUID_GROUPS, hyphens, strict=False)):
        if end - start != expected:
            return f"invalid group length in group {group}: expected {expected}, found {end - start}"
        start = end + 1
    return f"invalid group length in group 4: expected {UUID_GROUPS[-1]}, found {length - start}"


def _refuse_lone_surrogates(value: Any) -> None:
    """Refuse texts with half of a surrogate pair: JSON can write it, but UTF-8 cannot."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            msg = "Input should be a valid string, unable to parse raw data as a unicode string"
            raise InvalidScalar(msg, "string_unicode") from None
