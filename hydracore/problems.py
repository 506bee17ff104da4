"""Reads untrusted values into declared types and finds every problem on the way, in pydantic's words.

msgspec stops at the first problem by design. This walks the same declarations (structs and `msgspec.Meta` bounds)
over a raw value instead and goes on after each problem. It accepts what pydantic's default mode accepts, which is a
little more than msgspec's strict mode: `"yes"` for a bool, `"5"` for an int. Wording and type names are those of
pydantic 2 (https://docs.pydantic.dev/latest/errors/validation_errors/), because clients of HTTP APIs know them; a test
compares both on made-up values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

from msgspec import inspect as types

from hydracore.documents import flaws

Location = tuple[str | int, ...]

#: Given a text, says what is wrong with it, or None. A field names its check with `Meta(extra={"check": name})`.
Check = Callable[[str], str | None]

TRUE_WORDS: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
FALSE_WORDS: Final = frozenset({"0", "false", "f", "no", "n", "off"})
UUID_GROUPS: Final = (8, 4, 4, 4, 12)
#: Of the usual form, and of the longest one (behind `urn:uuid:`).
UUID_LENGTH: Final = 36
UUID_LENGTH_MAX: Final = 45
INT_TEXT: Final = re.compile(r"\s*[+-]?\d+(_\d+)*(\.0+)?\s*")
UUID_TEXT: Final = re.compile(r"[0-9A-Fa-f]{32}|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
#: Longer number texts are refused unread, as pydantic does: reading them takes quadratic time.
INT_TEXT_LENGTH_MAX: Final = 4300


class Problem(NamedTuple):
    """One thing that is wrong with a value: where, in words, and as a code."""

    loc: Location
    msg: str
    type: str


class Invalid(Exception):
    """A value does not fit its declared type. `problems`: all of them, in the order of the declaration."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, problem.loc))}: {problem.msg}" for problem in problems))
        self.problems = problems


def read(value: Any, declared: Any, *, loc: Location = (), checks: Mapping[str, Check] | None = None) -> Any:
    """`value` as an instance of the `declared` type. Raises `Invalid` with every problem of it."""
    reader = Reader(checks or {})
    result = reader.read(value, type_info(declared), loc)
    if reader.problems:
        raise Invalid(reader.problems)
    return result


@cache
def type_info(declared: Any) -> types.Type:
    """msgspec's description of a type; made once, because making it costs more than reading a value."""
    return types.type_info(declared)


class Reader:
    """Collects problems over any number of values; what `read` returns means nothing once there is one."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self.problems: list[Problem] = []
        self._checks = checks

    def read(self, value: Any, info: types.Type, loc: Location) -> Any:
        if isinstance(info, types.Metadata):
            result = self.read(value, info.type, loc)
            self._run_check(result, info, loc)
            return result
        if isinstance(info, types.UnionType):
            return self._union(value, info, loc)
        if isinstance(info, types.StructType):
            return self._struct(value, info, loc)
        if isinstance(info, types.ListType | types.VarTupleType):
            return self._list(value, info, loc)
        if isinstance(info, types.DictType):
            return self._dict(value, info, loc)
        if isinstance(info, types.AnyType):
            return self._anything(value, loc)
        try:
            return _read_scalar(value, info)
        except _Refused as refused:
            self._add(loc, refused.msg, refused.type)
            return None

    def _add(self, loc: Location, msg: str, kind: str) -> None:
        self.problems.append(Problem(loc, msg, kind))

    def _run_check(self, value: Any, info: types.Metadata, loc: Location) -> None:
        check = self._checks.get(named_check(info) or "")
        if check is not None and isinstance(value, str):
            complaint = check(value)
            if complaint is not None:
                self._add(loc, f"Value error, {complaint}", "value_error")

    def _union(self, value: Any, info: types.UnionType, loc: Location) -> Any:
        inner = [member for member in info.types if not isinstance(member, types.NoneType)]
        # Any other union would need pydantic's "smart mode"; none is declared anywhere.
        assert info.includes_none, info
        assert len(inner) == 1, info
        return None if value is None else self.read(value, inner[0], loc)

    def _struct(self, value: Any, info: types.StructType, loc: Location) -> Any:
        if not isinstance(value, dict):
            kind = "model_attributes_type"
            self._add(loc, "Input should be a valid dictionary or object to extract fields from", kind)
            return None
        values = cast("dict[str, Any]", value)
        count_before = len(self.problems)
        known: dict[str, Any] = {}
        for field in info.fields:
            here = (*loc, field.encode_name)
            if field.encode_name in values:
                known[field.name] = self.read(values[field.encode_name], field.type, here)
            elif field.required:
                self._add(here, "Field required", "missing")
        if info.forbid_unknown_fields:
            names = {field.encode_name for field in info.fields}
            for name in (name for name in values if name not in names):
                self._add((*loc, name), "Extra inputs are not permitted", "extra_forbidden")
        return None if len(self.problems) > count_before else info.cls(**known)

    def _list(self, value: Any, info: types.ListType | types.VarTupleType, loc: Location) -> Any:
        if not isinstance(value, list):
            self._add(loc, "Input should be a valid list", "list_type")
            return None
        values = cast("list[Any]", value)
        if info.max_length is not None and len(values) > info.max_length:
            limit = _plural(info.max_length, "item")
            self._add(loc, f"List should have at most {limit} after validation, not {len(values)}", "too_long")
            return None
        if info.min_length is not None and len(values) < info.min_length:
            limit = _plural(info.min_length, "item")
            self._add(loc, f"List should have at least {limit} after validation, not {len(values)}", "too_short")
            return None
        items = [self.read(item, info.item_type, (*loc, index)) for index, item in enumerate(values)]
        return items if isinstance(info, types.ListType) else tuple(items)

    def _dict(self, value: Any, info: types.DictType, loc: Location) -> Any:
        if not isinstance(value, dict):
            self._add(loc, "Input should be a valid dictionary", "dict_type")
            return None
        if isinstance(info.value_type, types.AnyType):
            return self._anything(value, loc)
        items = cast("dict[str, Any]", value).items()
        return {key: self.read(item, info.value_type, (*loc, key)) for key, item in items}

    def _anything(self, value: Any, loc: Location) -> Any:
        for flaw in flaws(value):
            self._add((*loc, *flaw.path), flaw.msg, flaw.type)
        return value


def named_check(info: types.Metadata) -> str | None:
    """The name of the check that a field asks for."""
    extra = cast("dict[str, Any]", info.extra or {})  # pyright: ignore[reportUnknownMemberType] - a bare dict there
    return extra.get("check")


class _Refused(Exception):
    def __init__(self, msg: str, kind: str) -> None:
        super().__init__(msg)
        self.msg = msg
        self.type = kind


def _read_scalar(value: Any, info: types.Type) -> Any:
    if isinstance(info, types.StrType):
        return _read_str(value, info)
    _refuse_half_characters(value)
    match info:
        case types.IntType():
            return _within(_read_int(value), info)
        case types.FloatType():
            return _within(_read_float(value), info)
        case types.BoolType():
            return _read_bool(value)
        case types.UUIDType():
            return _read_uuid(value)
        case types.DecimalType():
            return _read_decimal(value)
        case types.LiteralType():
            return _read_literal(value, info)
        case _:
            # A declaration of ours that nobody has needed yet: extend this, rather than let it through unread.
            raise TypeError(f"No reader for {info}")


def _read_str(value: Any, info: types.StrType) -> str:
    if not isinstance(value, str):
        raise _Refused("Input should be a valid string", "string_type")
    _refuse_half_characters(value)
    if info.min_length is not None and len(value) < info.min_length:
        raise _Refused(f"String should have at least {_plural(info.min_length, 'character')}", "string_too_short")
    if info.max_length is not None and len(value) > info.max_length:
        raise _Refused(f"String should have at most {_plural(info.max_length, 'character')}", "string_too_long")
    # pydantic's `$` is the very end; Python's would let a line feed pass after it.
    if info.pattern is not None and not re.search(re.sub(r"\$$", r"\\Z", info.pattern), value):
        raise _Refused(f"String should match pattern '{info.pattern}'", "string_pattern_mismatch")
    if "\0" in value:
        # Our own rule: PostgreSQL cannot store the character, and no name or prompt needs it.
        raise _Refused("Value error, text must not contain the NUL character", "value_error")
    return value


def _read_int(value: Any) -> int:
    if isinstance(value, bool | int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _Refused("Input should be a finite number", "finite_number")
        if not value.is_integer():
            raise _Refused("Input should be a valid integer, got a number with a fractional part", "int_from_float")
        return int(value)
    if not isinstance(value, str):
        raise _Refused("Input should be a valid integer", "int_type")
    if len(value) > INT_TEXT_LENGTH_MAX:
        raise _Refused("Unable to parse input string as an integer, exceeded maximum size", "int_parsing_size")
    if not INT_TEXT.fullmatch(value) or not value.isascii():
        raise _Refused("Input should be a valid integer, unable to parse string as an integer", "int_parsing")
    return int(value.strip().split(".")[0])


def _read_float(value: Any) -> float:
    if isinstance(value, str):
        try:
            number = float(value if value.isascii() else "")
        except ValueError:
            raise _Refused(
                "Input should be a valid number, unable to parse string as a number", "float_parsing"
            ) from None
    elif isinstance(value, bool | int | float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    else:
        raise _Refused("Input should be a valid number", "float_type")
    if not math.isfinite(number):
        # Our own rule: JSON has no such number, so no answer could show it again.
        raise _Refused("Input should be a finite number", "finite_number")
    return number


def _within(number: Any, info: types.IntType | types.FloatType) -> Any:
    if info.ge is not None and number < info.ge:
        raise _Refused(f"Input should be greater than or equal to {info.ge}", "greater_than_equal")
    if info.gt is not None and number <= info.gt:
        raise _Refused(f"Input should be greater than {info.gt}", "greater_than")
    if info.le is not None and number > info.le:
        raise _Refused(f"Input should be less than or equal to {info.le}", "less_than_equal")
    if info.lt is not None and number >= info.lt:
        raise _Refused(f"Input should be less than {info.lt}", "less_than")
    return number


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    # A whole float counts as the integer; a fraction is no candidate at all.
    if isinstance(value, str | int) or (isinstance(value, float) and value.is_integer()):
        word = str(int(value) if isinstance(value, float) else value).lower()
        if word in TRUE_WORDS | FALSE_WORDS:
            return word in TRUE_WORDS
        raise _Refused("Input should be a valid boolean, unable to interpret input", "bool_parsing")
    raise _Refused("Input should be a valid boolean", "bool_type")


def _read_decimal(value: Any) -> Decimal:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise _Refused("Decimal input should be an integer, float, string or Decimal object", "decimal_type")
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise _Refused("Input should be a valid decimal", "decimal_parsing") from None
    if not number.is_finite():
        raise _Refused("Input should be a finite number", "finite_number")
    return number


def _read_literal(value: Any, info: types.LiteralType) -> Any:
    if value in info.values:
        return value
    *head, last = (repr(choice) for choice in info.values)
    choices = f"{', '.join(head)} or {last}" if head else last
    raise _Refused(f"Input should be {choices}", "literal_error")


def _read_uuid(value: Any) -> UUID:
    if not isinstance(value, str):
        raise _Refused("UUID input should be a string, bytes or UUID object", "uuid_type")
    text = _without_uuid_wrapping(value)
    if UUID_TEXT.fullmatch(text) and (text == value or "-" in text):
        return UUID(text)
    raise _Refused(f"Input should be a valid UUID, {_uuid_complaint(value, text)}", "uuid_parsing")


def _without_uuid_wrapping(value: str) -> str:
    """The UUID's own text: it may stand in braces or behind `urn:uuid:`."""
    if len(value) == UUID_LENGTH:
        return value
    if value.startswith("{") and value.endswith("}"):
        return value[1:-1]
    return value.removeprefix("urn:uuid:")


def _uuid_complaint(value: str, text: str) -> str:
    """What is wrong, as the parser behind pydantic says it (Rust's uuid crate)."""
    length = len(value.encode(errors="replace"))
    if length > UUID_LENGTH_MAX:
        return f"invalid length: found {length}"
    # Positions count from the start of what the parser looks at: the text alone where it has the right length.
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


def _refuse_half_characters(value: Any) -> None:
    """Half of a surrogate pair: JSON can spell it and UTF-8 cannot."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            msg = "Input should be a valid string, unable to parse raw data as a unicode string"
            raise _Refused(msg, "string_unicode") from None


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
