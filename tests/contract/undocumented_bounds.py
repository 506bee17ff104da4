"""The bounds that are kept and not served (`schemas.undocumented`): the comparison of documents cannot see them, so they are
pinned here. Whoever narrows one takes from clients what the contract lets them send."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from hydracore.api.operations import Operation

Json = dict[str, Any]


_TEXT = {"maxLength": 10_000}
_PROMPT = {"maxLength": 50_000}
_ON_ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f]*\Z"
_MODEL = {"minLength": 1, "maxLength": 200, "pattern": _ON_ONE_LINE}
_DOLLARS = {"minimum": 0, "maximum": 1e9}
_TEMPERATURE = {"minimum": 0, "maximum": 2}
_SLUGS = {"body.workflow_slugs": {"maxItems": 1_000}, "body.workflow_slugs[]": _TEXT}
_KEY = {"minLength": 1, "maxLength": 255, "pattern": _ON_ONE_LINE}

UNDOCUMENTED_BOUNDS: dict[str, dict[str, Json]] = {
    "GET /v1/instances": {"query.cursor": {"maxLength": 200}},
    "POST /v1/instances": {
        "header.idempotency-key": _KEY,
        "body.agent_name": _TEXT,
        "body.customer_id": {"pattern": r"^[A-Za-z0-9._:@-]{1,128}\Z"},
        "body.idempotency_key": _KEY,
        "body.manifest_id": _TEXT,
        "body.recipe_id": _TEXT,
        "body.user_display_name": _TEXT,
        "body.website_template_slug": _TEXT,
        **_SLUGS,
    },
    "POST /v1/instances/{instance_id}/chat": {
        "header.idempotency-key": {"minLength": 1, "maxLength": 200, "pattern": r"^[\x20-\x7e]*\Z"},
        "body.conversation_id": {"pattern": r"^[A-Za-z0-9:_-]{1,128}\Z"},
    },
    "POST /v1/instances/{instance_id}/config": {
        "body.agent_name": _TEXT,
        "body.customer_facing_prompt": _PROMPT,
        "body.model_temperature": _TEMPERATURE,
        "body.recipe_id": _TEXT,
        "body.system_prompt": _PROMPT,
        "body.telegram_bot_token": {"minLength": 1, "maxLength": 256},
        **_SLUGS,
    },
    "PATCH /v1/instances/{instance_id}/platform-config": {
        "body.integrations": {"maxItems": 500},
        "body.recipe_id": _TEXT,
        "body.skills": {"maxItems": 500},
        "body.workflow_slugs": {"maxItems": 1_000},
    },
    "PATCH /v1/instances/{instance_id}/model-policy": {
        "body.budget_daily_usd": _DOLLARS,
        "body.budget_monthly_usd": _DOLLARS,
        "body.embedding_model": _MODEL,
        "body.fallbacks": {"maxItems": 8},
        "body.fallbacks[]": _MODEL,
        "body.max_tokens": {"minimum": 1, "maximum": 10_000_000},
        "body.primary": _MODEL,
        "body.temperature": _TEMPERATURE,
    },
    "GET /v1/instances/{instance_id}/usage": {"query.days": {"minimum": 1, "maximum": 366}},
}


def undocumented_bounds(contract: Json, operations: Iterable[Operation]) -> dict[str, dict[str, Json]]:
    """By operation of the contract and by field, as the declared types have them."""
    return {
        f"{op.declared.method} {op.declared.path}": found
        for op in operations
        if op.declared.method.lower() in contract["paths"].get(op.declared.path, {})
        if (found := dict(_of_operation(op)))
    }


def _of_operation(op: Operation) -> Iterator[tuple[str, Json]]:
    inputs = op.signature.inputs
    schemas, components = msgspec.json.schema_components([each.declared for each in inputs], ref_template="{name}")
    for each, schema in zip(inputs, schemas, strict=True):
        yield from _within(schema, components, each.source if each.source == "body" else f"{each.source}.{each.alias}")


def _within(schema: Json, components: Json, where: str) -> Iterator[tuple[str, Json]]:
    schema = components[schema["$ref"]] if "$ref" in schema else schema
    if "x-undocumented" in schema:
        yield (
            where,
            {name: value for name, value in schema.items() if name.startswith(("min", "max", "excl", "pattern"))},
        )
    for member in schema.get("anyOf", []):
        yield from _within(member, components, where)
    for name, field in schema.get("properties", {}).items():
        yield from _within(field, components, f"{where}.{name}")
    if isinstance(items := schema.get("items"), dict):
        yield from _within(items, components, f"{where}[]")
