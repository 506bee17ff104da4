"""From an HTTP request to a handler's arguments, or to all problems of the request at once.

A handler's signature says what it takes: parameters that are named in the path template come from the path, `body` from
the JSON body, those marked `Header(...)` from headers, and all others from the query string. Problems are reported in
FastAPI's order (path, query, header, body) and format, because the API's clients were written for those.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, NamedTuple, cast, get_args, get_origin
from urllib.parse import unquote_to_bytes
from uuid import UUID, uuid4, uuid5

import msgspec
from msgspec import inspect as types

from events.ids import NAMESPACE
from events.record import Origin
from hydracore.api.errors import NotFound, RequestInvalid
from hydracore.api.raw_request import (
    INVALID_BODY,
    RawHeaders,
    header_texts,
    is_json,
    is_repeated,
    json_body,
    query_parameters,
)
from hydracore.json_input import JSON_ERRORS
from hydracore.problems import Check, Location, Problem, Reader, named_check, type_info

Source = Literal["path", "query", "header", "body"]
Handler = Callable[..., Awaitable[Any]]

#: The values of a request by source and name. Header names are in lower case. `body`: the fields of the body's JSON
#: object; empty where it is none.
RequestValues = Mapping[Source, Mapping[str, Any]]
#: Returns the problems of parts that are valid each, but not together.
CrossCheck = Callable[[RequestValues], Iterable[Problem]]

_ORDER: Final[tuple[Source, ...]] = ("path", "query", "header", "body")


class Header(NamedTuple):
    """Marks a handler's parameter as the value of a header: `Annotated[str, Header("X-Name")]`."""

    name: str


class RestOfPath:
    """Marks the last path parameter as the rest of the path, with slashes: `Annotated[str, Rest()]`.

    It is read from the raw path, because routing has decoded and normalized the other one.
    """


class Incoming(NamedTuple):
    """The request behind the arguments, for handlers that need it: its id, its exact body and its headers."""

    request_id: str
    raw_body: bytes
    headers: RawHeaders

    @property
    def correlation_id(self) -> UUID:
        """The request id for the log. An id that is not a UUID always gives the same UUID."""
        try:
            return UUID(self.request_id)
        except ValueError:
            return uuid5(NAMESPACE, self.request_id)

    def origin(self, actor: str, *, causation_id: UUID | None = None) -> Origin:
        """The origin of a command of this request. `causation_id`: the command that caused it, if any."""
        return Origin(actor=actor, command_id=uuid4(), correlation_id=self.correlation_id, causation_id=causation_id)


class CheckProblems(NamedTuple):
    """What named checks found in an otherwise valid request. A handler that takes this has to refuse it itself."""

    problems: tuple[Problem, ...] = ()

    def require_none(self) -> None:
        """Raises `RequestInvalid` where there are problems."""
        if self.problems:
            raise RequestInvalid(list(self.problems))


class Input(NamedTuple):
    """An argument of a handler that the client gives. `alias`: its name in the request.

    `prefix`: for a `RestOfPath` parameter, the path before it.
    """

    name: str
    alias: str
    source: Source
    declared: Any
    info: types.Type
    required: bool
    default: Any
    prefix: str | None = None
    #: `alias` as it is spelled in documents. Header names are in lower case in requests.
    wire_name: str = ""


class Signature(NamedTuple):
    """What a handler takes. `who`: the type of its caller, if any. `*_name`: names of parameters, empty for none."""

    inputs: tuple[Input, ...]
    who: type | None
    who_name: str
    incoming_name: str
    check_problems_name: str


def read_signature(handler: Handler, path: str, *, callers: Collection[type]) -> Signature:
    """The inputs of `handler`, in the order in which their problems are reported.

    `callers`: the types of parameters that stand for the caller.
    """
    inputs: list[Input] = []
    who, who_name, incoming_name, check_problems_name = None, "", "", ""
    for name, parameter in inspect.signature(handler, eval_str=True).parameters.items():
        if parameter.annotation in callers:
            who, who_name = parameter.annotation, name
        elif parameter.annotation is Incoming:
            incoming_name = name
        elif parameter.annotation is CheckProblems:
            check_problems_name = name
        else:
            inputs.append(_input_of(parameter, path))
    inputs.sort(key=lambda each: _ORDER.index(each.source))
    return Signature(tuple(inputs), who, who_name, incoming_name, check_problems_name)


def _input_of(parameter: inspect.Parameter, path: str) -> Input:
    declared, *marks = get_args(parameter.annotation) if _is_annotated(parameter) else (parameter.annotation,)
    kept = tuple(mark for mark in marks if not isinstance(mark, Header | RestOfPath))
    if kept:
        declared = Annotated[(declared, *kept)]
    source: Source = "query"
    alias = wire_name = name = parameter.name
    prefix: str | None = None
    if f"{{{name}}}" in path:
        source = "path"
        prefix = path.partition("{")[0] if any(isinstance(mark, RestOfPath) for mark in marks) else None
    elif name == "body":
        source = "body"
    for mark in marks:
        if isinstance(mark, Header):
            source, alias, wire_name = "header", mark.name.lower(), mark.name
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    return Input(name, alias, source, declared, type_info(declared), required, default, prefix, wire_name)


def _is_annotated(parameter: inspect.Parameter) -> bool:
    return get_origin(parameter.annotation) is Annotated


class RequestReader:
    """Reads the arguments of one operation from a request. `checks`: see `hydracore.problems`.

    `cross_check` is not called where only path and body are given.
    """

    def __init__(
        self, signature: Signature, checks: Mapping[str, Check], *, cross_check: CrossCheck | None = None
    ) -> None:
        self._inputs = inputs = signature.inputs
        self._checks = checks
        self._cross_check = cross_check
        self._check_problems_name = signature.check_problems_name
        self._defaults: dict[str, Any] = {each.name: each.default for each in inputs if not each.required}
        if self._check_problems_name:
            self._defaults[self._check_problems_name] = CheckProblems()
        self._path = [each for each in inputs if each.source == "path"]
        self._prefix_patterns = [
            (each.alias, _prefix_pattern(each.prefix)) for each in self._path if each.prefix is not None
        ]
        body = next((each for each in inputs if each.source == "body"), None)
        self._body_name = body.name if body is not None else None
        self._decoder = msgspec.json.Decoder(body.declared) if body is not None else None
        # msgspec alone suffices for requests of only path and body, if it can check all their types.
        self._has_fast_path = not any(
            each.source == "header" or each.prefix or (each.source != "query" and _is_beyond_msgspec(each.info))
            for each in inputs
        )

    @property
    def wants_body(self) -> bool:
        return self._body_name is not None

    def read(self, scope: Mapping[str, Any], raw_body: bytes) -> dict[str, Any]:
        """The handler's arguments by name. Raises `RequestInvalid`, and `NotFound` for an empty `RestOfPath` parameter."""
        if self._has_fast_path and not scope["query_string"]:
            try:
                return self._read_fast(scope, raw_body)
            except JSON_ERRORS:
                # `_read_all` finds the problems, or none: `_read_fast` is stricter.
                pass
        return self._read_all(scope, raw_body)

    def _read_fast(self, scope: Mapping[str, Any], raw_body: bytes) -> dict[str, Any]:
        arguments = self._defaults.copy()
        for each in self._path:
            arguments[each.name] = msgspec.convert(scope["path_params"][each.alias], each.declared)
        if self._decoder is not None and self._body_name is not None:
            if not is_json(scope["headers"]) or b"\\u0000" in raw_body:
                raise msgspec.ValidationError
            arguments[self._body_name] = self._decoder.decode(raw_body)
        return arguments

    def _read_all(self, scope: Mapping[str, Any], raw_body: bytes) -> dict[str, Any]:
        reader = Reader(self._checks)
        given: dict[Source, Mapping[str, Any]] = {
            "path": self._path_given(scope),
            "query": query_parameters(scope["query_string"]),
            "header": header_texts(scope["headers"]),
            "body": {},
        }
        arguments = self._defaults.copy()
        for each in self._inputs:
            if each.source == "body":
                value = json_body(reader, raw_body, scope["headers"])
                if value is not INVALID_BODY:
                    arguments[each.name] = reader.read(value, each.info, ("body",))
                if isinstance(value, dict):
                    given["body"] = cast("dict[str, Any]", value)
                continue
            loc: Location = (each.source, each.alias)
            if each.source == "header" and is_repeated(scope["headers"], each.alias.encode()):
                # Something between the client and us may use the other one.
                reader.problems.append(Problem(loc, "Value error, it is given twice", "value_error"))
            elif each.alias in given[each.source]:
                arguments[each.name] = reader.read(given[each.source][each.alias], each.info, loc)
            elif each.required:
                reader.problems.append(Problem(loc, "Field required", "missing"))
        if self._cross_check is not None:
            reader.problems += self._cross_check(given)
            reader.problems.sort(key=lambda problem: _ORDER.index(problem.loc[0]))
        if reader.type_problems or (reader.problems and not self._check_problems_name):
            raise RequestInvalid(reader.problems)
        if reader.problems:
            arguments[self._check_problems_name] = CheckProblems(tuple(reader.problems))
        return arguments

    def _path_given(self, scope: Mapping[str, Any]) -> Mapping[str, Any]:
        """The path's parameters. Raises `NotFound` where a `RestOfPath` parameter is empty."""
        given = dict(scope["path_params"])
        for name, pattern in self._prefix_patterns:
            found = pattern.match(raw_path := scope["raw_path"].decode("latin-1"))
            rest = raw_path[found.end() :] if found is not None else ""
            if not rest:
                raise NotFound(HTTPStatus.NOT_FOUND.phrase)
            given[name] = unquote_to_bytes(rest).decode(errors="replace")
        return given


def _prefix_pattern(prefix: str) -> re.Pattern[str]:
    """A pattern for `prefix` at the beginning of a raw path: characters may be percent-encoded, slashes repeated.

    Further slashes at its end do not match, because they may belong to the rest.
    """
    alternatives = [f"(?:{re.escape(each)}|%(?i:{ord(each):02x}))" + ("+" if each == "/" else "") for each in prefix]
    return re.compile("".join(alternatives).removesuffix("+"))


def _is_beyond_msgspec(info: types.Type) -> bool:
    """Whether msgspec cannot fully check a type: named checks, free JSON, decimals, patterns that end with `$`.

    msgspec would accept what the rules refuse: decimals that are no numbers, a line feed at the end of such a pattern.
    """
    match info:
        case types.Metadata():
            return named_check(info) is not None or _is_beyond_msgspec(info.type)
        case types.UnionType():
            return any(_is_beyond_msgspec(member) for member in info.types)
        case types.StructType():
            return any(_is_beyond_msgspec(field.type) for field in info.fields)
        case types.ListType() | types.VarTupleType():
            return _is_beyond_msgspec(info.item_type)
        case types.StrType():
            return info.pattern is not None and info.pattern.endswith("$")
        case types.DictType() | types.AnyType() | types.DecimalType():
            return True
        case _:
            return False
