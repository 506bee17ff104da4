"""The served OpenAPI document against the contract, operation by operation."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hydracore.api.openapi import document
from tests.api_server import every_operation
from tests.contract.openapi_compare import narrowings
from tests.contract.undocumented_bounds import UNDOCUMENTED_BOUNDS, undocumented_bounds

CONTRACT: dict[str, Any] = json.loads(Path(__file__).with_name("openapi.json").read_text())

OPERATIONS = [(method, path) for path, methods in CONTRACT["paths"].items() for method in methods]


@pytest.fixture(scope="module")
def served() -> dict[str, Any]:
    return json.loads(json.dumps(document(every_operation())))


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_served_document_narrows_no_operation_of_the_contract(
    served: dict[str, Any], method: str, path: str
) -> None:
    assert narrowings(CONTRACT, served, method=method, path=path) == []


def test_the_document_declares_that_chats_can_be_streamed(served: dict[str, Any]) -> None:
    told = served["paths"]["/v1/instances/{instance_id}/chat"]["post"]["responses"]["200"]["content"]

    assert told == {"application/json": {"schema": {}}, "text/event-stream": {"schema": {"type": "string"}}}


def test_every_operation_declares_the_error_statuses_that_any_request_can_get(served: dict[str, Any]) -> None:
    for path, methods in served["paths"].items():
        for method, told in methods.items():
            expected = set[str]()
            if "security" in told:
                expected |= {"401", "422", "429", "503"}
            if "requestBody" in told:
                expected |= {"408", "413", "422", "503"}
            assert expected <= told["responses"].keys(), f"{method} {path}"


def test_the_bounds_enforced_but_not_documented_are_exactly_the_listed_ones() -> None:
    assert undocumented_bounds(CONTRACT, every_operation()) == UNDOCUMENTED_BOUNDS


def test_every_reference_resolves_every_schema_is_used_and_no_private_mark_is_served(served: dict[str, Any]) -> None:
    text = json.dumps(served)

    assert "x-undocumented" not in text
    for name in served["components"]["schemas"]:
        assert name.isidentifier(), f"{name}: two types of one name, told apart by their modules"
        assert f'"#/components/schemas/{name}"' in text, f"{name} is used by nothing"
    for reference in (part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]):
        assert reference in served["components"]["schemas"]
    ids = [each["operationId"] for methods in served["paths"].values() for each in methods.values()]
    assert len(ids) == len(set(ids))


def test_patterns_are_served_in_javascript_syntax(served: dict[str, Any]) -> None:
    """JSON Schema's patterns are ECMA-262's, which has no `\\Z`: validators refuse the whole document for it."""
    patterns = [node["pattern"] for node in _nodes(served) if isinstance(node.get("pattern"), str)]

    assert r"^[\x21-\x7e]+$" in patterns
    assert [each for each in patterns if r"\Z" in each] == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda doc: doc["paths"]["/v1/instances"].pop("post"), "not served"),
        (lambda doc: _create(doc)["required"].append("agent_name"), "body.agent_name: required"),
        (lambda doc: _create(doc)["properties"].pop("recipe_id"), "body.recipe_id: missing"),
        (lambda doc: _create(doc)["properties"]["preset_id"].pop("default"), "body.preset_id: default is None"),
        (lambda doc: _create(doc)["properties"]["tier_id"].update(maxLength=5), "body.tier_id: maxLength is 5"),
        (
            lambda doc: _create(doc)["properties"].update(recipe_id={"type": "string"}),
            "body.recipe_id: no longer takes null",
        ),
        (lambda doc: _answer(doc)["required"].remove("task_id"), "202.task_id: may now be left out"),
        (lambda doc: _answer(doc)["properties"].pop("message"), "202.message: missing"),
        (
            lambda doc: _answer(doc)["properties"].update(message={"anyOf": [{"type": "string"}, {"type": "null"}]}),
            "202.message: may now be null",
        ),
        (lambda doc: _answer(doc)["properties"]["instance_id"].update(anyOf=[{"type": "string"}]), "202.instance_id"),
        (lambda doc: doc["paths"]["/v1/instances"]["post"]["responses"].pop("202"), "202: missing"),
        (lambda doc: doc["paths"]["/v1/instances"]["post"].update(parameters=[]), "header.X-Api-Key: missing"),
        (lambda doc: doc["paths"]["/v1/instances"]["post"].update(security=[]), "security"),
    ],
)
def test_the_contract_comparison_detects_a_narrowing(served: dict[str, Any], change: Any, complaint: str) -> None:
    changed = copy.deepcopy(served)

    change(changed)

    assert complaint in " ".join(narrowings(CONTRACT, changed, method="post", path="/v1/instances"))


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(inner)


def _create(doc: dict[str, Any]) -> dict[str, Any]:
    return doc["components"]["schemas"]["CreateInstance"]


def _answer(doc: dict[str, Any]) -> dict[str, Any]:
    return doc["components"]["schemas"]["CreateInstanceResponse"]
