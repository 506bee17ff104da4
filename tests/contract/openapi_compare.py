"""Compares a served OpenAPI document with the contract: what may be added, and what would break a client.

A request may be accepted more widely than the contract says and an answer may hold more; never the other way round.
Titles, descriptions and examples are no promise and are not compared.
"""

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

#: What a client may count on in a parameter or a field, beside its type.
_KEPT_ON_INPUT = ("default", "format")
_UPPER = ("maximum", "maxLength", "maxItems", "exclusiveMaximum")
_LOWER = ("minimum", "minLength", "minItems", "exclusiveMinimum")


def narrowings(contract: Json, served: Json, *, method: str, path: str) -> list[str]:
    """Every way in which the served operation gives less, or takes less, than the contract's."""
    ours = served["paths"].get(path, {}).get(method)
    if ours is None:
        return ["not served"]
    theirs = contract["paths"][path][method]
    compare = _Comparison(contract, served)
    return [
        *compare.parameters(theirs.get("parameters", []), ours.get("parameters", [])),
        *compare.body(theirs.get("requestBody"), ours.get("requestBody")),
        *compare.answers(theirs["responses"], ours["responses"]),
        *(["summary"] if ours.get("summary") != theirs.get("summary") else []),
        *(["security"] if ours.get("security") != theirs.get("security") else []),
    ]


class _Comparison:
    def __init__(self, contract: Json, served: Json) -> None:
        self._contract = contract
        self._served = served

    def parameters(self, theirs: list[Json], ours: list[Json]) -> Iterator[str]:
        known = {(each["in"], each["name"].lower()): each for each in ours}
        promised = {(each["in"], each["name"].lower()) for each in theirs}
        for each in theirs:
            where = f"{each['in']}.{each['name']}"
            found = known.get((each["in"], each["name"].lower()))
            if found is None:
                yield f"{where}: missing"
                continue
            if found.get("required", False) != each.get("required", False):
                yield f"{where}: required"
            yield from self._input(each["schema"], found["schema"], where)
        for key, each in known.items():
            if key not in promised and each.get("required", False):
                yield f"{key[0]}.{key[1]}: required, and not in the contract"

    def body(self, theirs: Json | None, ours: Json | None) -> Iterator[str]:
        if theirs is None:
            if ours is not None and ours.get("required", False):
                yield "body: required, and not in the contract"
            return
        if ours is None:
            yield "body: missing"
            return
        yield from self._input(_json_schema(theirs), _json_schema(ours), "body")

    def answers(self, theirs: Json, ours: Json) -> Iterator[str]:
        for status, each in theirs.items():
            if status not in ours:
                yield f"{status}: missing"
                continue
            yield from self._output(_json_schema(each), _json_schema(ours[status]), status)
        for status in ours.keys() - theirs.keys():
            if status.startswith("2"):
                yield f"{status}: a success that the contract does not know"

    def _input(self, theirs: Json, ours: Json, where: str) -> Iterator[str]:
        """What the contract lets a client send must be taken."""
        theirs, ours = _resolved(theirs, self._contract), _resolved(ours, self._served)
        yield from (f"{where}: no longer takes {kind}" for kind in _types(theirs) - _types(ours))
        theirs, ours = _without_null(theirs, self._contract), _without_null(ours, self._served)
        for key in _KEPT_ON_INPUT:
            # A default of null is what leaving a nullable field out means anyway.
            if theirs.get(key) != ours.get(key):
                yield f"{where}: {key} is {ours.get(key)!r}, not {theirs.get(key)!r}"
        yield from _tighter(theirs, ours, where)
        if ours.keys() & {"properties"} or theirs.keys() & {"properties"}:
            for name in set(ours.get("required", [])) - set(theirs.get("required", [])):
                yield f"{where}.{name}: required"
            for name in set(theirs.get("required", [])) - set(ours.get("required", [])):
                yield f"{where}.{name}: no longer required, so no longer promised to be asked for"
            for name, field in theirs.get("properties", {}).items():
                if name not in ours.get("properties", {}):
                    yield f"{where}.{name}: missing"
                else:
                    yield from self._input(field, ours["properties"][name], f"{where}.{name}")
        if "items" in theirs:
            yield from self._input(theirs["items"], ours.get("items", {}), f"{where}[]")
        if isinstance(theirs.get("additionalProperties"), dict):
            yield from self._input(theirs["additionalProperties"], ours.get("additionalProperties", {}), f"{where}{{}}")

    def _output(self, theirs: Json, ours: Json, where: str) -> Iterator[str]:
        """What the contract lets a client expect must be given."""
        theirs, ours = _resolved(theirs, self._contract), _resolved(ours, self._served)
        if not theirs:
            return
        yield from (f"{where}: may now be {kind}" for kind in _types(ours) - _types(theirs))
        yield from (f"{where}: is never {kind}" for kind in _types(theirs) - _types(ours))
        theirs, ours = _without_null(theirs, self._contract), _without_null(ours, self._served)
        if theirs.get("format") != ours.get("format"):
            yield f"{where}: format is {ours.get('format')!r}, not {theirs.get('format')!r}"
        for name in set(theirs.get("required", [])) - set(ours.get("required", [])):
            yield f"{where}.{name}: may now be left out"
        for name, field in theirs.get("properties", {}).items():
            if name in ours.get("properties", {}):
                yield from self._output(field, ours["properties"][name], f"{where}.{name}")
            else:
                yield f"{where}.{name}: missing"
        if "items" in theirs:
            yield from self._output(theirs["items"], ours.get("items", {}), f"{where}[]")
        if isinstance(theirs.get("additionalProperties"), dict):
            yield from self._output(theirs["additionalProperties"], ours["additionalProperties"], f"{where}{{}}")


def _tighter(theirs: Json, ours: Json, where: str) -> Iterator[str]:
    """A bound of the contract is kept as it is: a wider one would let through what the contract promises to refuse."""
    for key in (*_UPPER, *_LOWER, "pattern", "enum"):
        if theirs.get(key) != ours.get(key):
            yield f"{where}: {key} is {ours.get(key)!r}, not {theirs.get(key)!r}"


def _json_schema(holder: Json) -> Json:
    return holder["content"]["application/json"]["schema"]


def _resolved(schema: Json, document: Json) -> Json:
    while "$ref" in schema:
        node: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            node = node[part]
        schema = node
    return schema


def _types(schema: Json) -> set[str]:
    """The JSON types that a schema admits; none named means any."""
    if "anyOf" in schema:
        return set().union(*(_types(each) for each in schema["anyOf"]))
    if "$ref" in schema:
        return {"object"}
    kind = schema.get("type")
    if kind is None:
        return {"string"} if "enum" in schema else {"any"}
    return set(kind) if isinstance(kind, list) else {kind}


def _without_null(schema: Json, document: Json) -> Json:
    """The one schema beside null of a nullable one."""
    members = [each for each in schema.get("anyOf", []) if each.get("type") != "null"]
    if len(members) != 1:
        return schema
    return {**_resolved(members[0], document), **({"default": schema["default"]} if schema.get("default") else {})}
