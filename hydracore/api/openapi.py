"""The OpenAPI 3.1 document, generated from the declared operations, so that it always fits what is served."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final, cast

import msgspec

from hydracore.api.agent_gate import CallingAgent, ReportingAgent
from hydracore.api.operations import Operation
from hydracore.api.schemas import HTTPError, HTTPValidationError
from hydracore.api.validation import Input
from hydracore.auth import Principal
from hydracore.media_types import EVENT_STREAM

_REF: Final = "#/components/schemas/{name}"
_BOUNDS: Final = frozenset(
    {"x-undocumented", "minLength", "maxLength", "pattern", "minItems", "maxItems", "minimum", "maximum"}
)

#: The security scheme of each type of caller, and the headers that it may send besides a token.
_SECURITY: Final[dict[type, list[dict[str, list[str]]]]] = {
    Principal: [{"bearer": []}],
    CallingAgent: [{"agent_key": []}],
    ReportingAgent: [{"agent_key": []}],
}
_CALLER_HEADERS: Final[dict[type, tuple[str, ...]]] = {Principal: ("X-Api-Key", "X-User-Id")}
_SECURITY_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "agent_key": {"type": "http", "scheme": "bearer", "description": "The key that an agent was issued"},
}

Json = dict[str, Any]


def document(operations: Iterable[Operation]) -> Json:
    """The whole document as JSON-ready objects."""
    listed = list(operations)
    types: list[Any] = [HTTPError, HTTPValidationError]
    for op in listed:
        types += [op.declared.answer, *(each.declared for each in op.signature.inputs)]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    served = (cast("Json", _documented(schema)) for schema in schemas)
    error, invalid = next(served), next(served)
    paths: dict[str, Json] = {}
    for op in listed:
        answer = next(served)
        inputs = [(each, next(served)) for each in op.signature.inputs]
        errors = dict.fromkeys(_errors_of(op), error)
        if op.signature.inputs or op.signature.who is not None:
            errors[HTTPStatus.UNPROCESSABLE_ENTITY] = invalid
        paths.setdefault(op.declared.path, {})[op.declared.method.lower()] = _operation(op, inputs, answer, errors)
    return {
        "openapi": "3.1.0",
        "info": {"title": "HydraCore", "version": "1"},
        "paths": paths,
        "components": {"schemas": _documented(components), "securitySchemes": _SECURITY_SCHEMES},
    }


def _operation(op: Operation, inputs: list[tuple[Input, Json]], answer: Json, errors: dict[int, Json]) -> Json:
    declared, who = op.declared, op.signature.who
    statuses = {status: (_description(status), body) for status, body in errors.items()}
    statuses |= {status: (_description(status), answer) for status in declared.also}
    statuses[declared.status] = ("OK", answer)
    described: Json = {
        "summary": declared.summary,
        "operationId": op.handler.__name__,
        "parameters": [
            *(_parameter(each, schema) for each, schema in inputs if each.source != "body"),
            *(_caller_header(name) for name in (_CALLER_HEADERS.get(who, ()) if who is not None else ())),
        ],
        "responses": {
            str(status): {"description": text, "content": {"application/json": {"schema": schema}}}
            for status, (text, schema) in sorted(statuses.items())
        },
    }
    if declared.streams:
        described["responses"][str(int(declared.status))]["content"][EVENT_STREAM] = {"schema": {"type": "string"}}
    if who is not None:
        described["security"] = _SECURITY[who]
    for each, schema in inputs:
        if each.source == "body":
            described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def _errors_of(op: Operation) -> set[int]:
    """The error statuses of an operation: its own, and those of authentication, rate limits and reading the body."""
    statuses = set(op.declared.errors)
    takes_body = any(each.source == "body" for each in op.signature.inputs)
    if op.signature.who is not None:
        statuses |= {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}
    if takes_body:
        statuses |= {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}
    if op.signature.who is not None or takes_body:
        # Without the database, callers cannot be authenticated and nothing can be stored.
        statuses.add(HTTPStatus.SERVICE_UNAVAILABLE)
    return statuses


def _parameter(each: Input, schema: Json) -> Json:
    name = each.wire_name
    if each.required:
        return {"name": name, "in": each.source, "required": True, "schema": schema}
    if each.default is not None:
        schema = {**schema, "default": each.default}
    return {"name": name, "in": each.source, "required": False, "schema": schema}


def _caller_header(name: str) -> Json:
    schema = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    return {"name": name, "in": "header", "required": False, "schema": schema}


def _description(status: int) -> str:
    return "Validation error" if status == HTTPStatus.UNPROCESSABLE_ENTITY else HTTPStatus(status).phrase


def _documented(schema: Any) -> Any:
    """`schema` without the bounds that are marked as undocumented.

    A list of anything gets an explicit `items`: generators of clients drop lists without it. Patterns end with `$`,
    which JSON Schema, as JavaScript, understands as Python does `\\Z`.
    """
    if isinstance(schema, list):
        return [_documented(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    node = cast("Json", schema)
    if node.get("type") == "array" and not {"items", "prefixItems"} & node.keys():
        anything: Json = {}
        node = {**node, "items": anything}
    if isinstance(pattern := node.get("pattern"), str):
        node = {**node, "pattern": pattern.replace(r"\Z", "$")}
    dropped = _BOUNDS if "x-undocumented" in node else frozenset[str]()
    return {name: _documented(value) for name, value in node.items() if name not in dropped}
