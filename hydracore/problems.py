"""Reads untrusted values into declared types, and reports every problem on the way, in pydantic's words.

msgspec stops at the first problem by design. This module walks the same declarations (structs and `msgspec.Meta`
bounds) over a raw value, and continues after each problem. It accepts what pydantic's default mode accepts, which is a
little more than msgspec's strict mode: `"yes"` for a bool, `"5"` for an int, but no bool for a number. Messages and
types are those of pydantic 2 (https://docs.pydantic.dev/latest/errors/validation_errors/), because clients of HTTP APIs
know them; a test compares both on generated values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple, cast

from msgspec import inspect as types

from hydracore.documents import DEPTH_MAX, flaws
from hydracore.scalars import InvalidScalar, read_scalar
from hydracore.wording import plural

Location = tuple[str | int, ...]

NO_OBJECT: Final = "Input should be a valid dictionary or object to extract fields from"

#: Returns what is wrong with a value of the declared type, or None. A list may hold None for items that are invalid. A
#: field names its check with `Meta(extra={"check": name})`.
Check = Callable[[Any], str | None]


class Problem(NamedTuple):
    """One problem of a value: where it is, a message, and a code."""

    loc: Location
    msg: str
    type: str


class Invalid(Exception):
    """A value does not fit its declared type. `problems`: all problems, in the order of the declaration."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, problem.loc))}: {problem.msg}" for problem in problems))
        self.problems = problems


def read(value: Any, declared: Any, *, loc: Location = (), checks: Mapping[str, Check] | None = None) -> Any:
    """`value` as an instance of the `declared` type. Raises `Invalid` with all its problems."""
    reader = Reader(checks or {})
    result = reader.read(value, type_info(declared), loc)
    if reader.problems:
        raise Invalid(reader.problems)
    return result


@cache
def type_info(declared: Any) -> types.Type:
    """msgspec's description of a type. Cached, because creating it costs more than reading a value."""
    return types.type_info(declared)


class Reader:
    """Collects problems of any number of values. What `read` returns is valid only while `type_problems` is 0."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self.problems: list[Problem] = []
        #: How many of the problems were reported by a named check, about values of the declared type.
        self.check_problems = 0
        self._checks = checks

    @property
    def type_problems(self) -> int:
        """How many of the problems are about values that are not of the declared type."""
        return len(self.problems) - self.check_problems

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
            return self._free_value(value, loc)
        try:
            return read_scalar(value, info)
        except InvalidScalar as invalid:
            self._add(loc, invalid.msg, invalid.type)
            return None

    def _add(self, loc: Location, msg: str, kind: str) -> None:
        self.problems.append(Problem(loc, msg, kind))

    def _run_check(self, value: Any, info: types.Metadata, loc: Location) -> None:
        check = self._checks.get(named_check(info) or "")
        if check is not None and value is not None:
            error = check(value)
            if error is not None:
                self._add(loc, f"Value error, {error}", "value_error")
                self.check_problems += 1

    def _union(self, value: Any, info: types.UnionType, loc: Location) -> Any:
        inner = [member for member in info.types if not isinstance(member, types.NoneType)]
        # Any other union would need pydantic's "smart mode". None is declared anywhere.
        assert info.includes_none, info
        assert len(inner) == 1, info
        return None if value is None else self.read(value, inner[0], loc)

    def _struct(self, value: Any, info: types.StructType, loc: Location) -> Any:
        if not isinstance(value, dict):
            self._add(loc, NO_OBJECT, "model_attributes_type")
            return None
        values = cast("dict[str, Any]", value)
        problems_before = self.type_problems
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
        return None if self.type_problems > problems_before else info.cls(**known)

    def _list(self, value: Any, info: types.ListType | types.VarTupleType, loc: Location) -> Any:
        if not isinstance(value, list):
            self._add(loc, "Input should be a valid list", "list_type")
            return None
        values = cast("list[Any]", value)
        if info.max_length is not None and len(values) > info.max_length:
            limit = plural(info.max_length, "item")
            self._add(loc, f"List should have at most {limit} after validation, not {len(values)}", "too_long")
            return None
        if info.min_length is not None and len(values) < info.min_length:
            limit = plural(info.min_length, "item")
            self._add(loc, f"List should have at least {limit} after validation, not {len(values)}", "too_short")
            return None
        if isinstance(info.item_type, types.AnyType):
            # The items together are one document, which is one level deeper here.
            self._free_value(values, loc, depth_max=DEPTH_MAX + 1)
            return values if isinstance(info, types.ListType) else tuple(values)
        items = [self.read(item, info.item_type, (*loc, index)) for index, item in enumerate(values)]
        return items if isinstance(info, types.ListType) else tuple(items)

    def _dict(self, value: Any, info: types.DictType, loc: Location) -> Any:
        if not isinstance(value, dict):
            self._add(loc, "Input should be a valid dictionary", "dict_type")
            return None
        if isinstance(info.value_type, types.AnyType):
            return self._free_value(value, loc)
        items = cast("dict[str, Any]", value).items()
        return {key: self.read(item, info.value_type, (*loc, key)) for key, item in items}

    def _free_value(self, value: Any, loc: Location, *, depth_max: int = DEPTH_MAX) -> Any:
        for flaw in flaws(value, depth_max=depth_max):
            self._add((*loc, *flaw.path), flaw.msg, flaw.type)
        return value


def named_check(info: types.Metadata) -> str | None:
    """The name of the check that a field declares."""
    extra = cast("dict[str, Any]", info.extra or {})
    return extra.get("check")
