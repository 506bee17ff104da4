"""The largest configuration can be sent by callers and read by an agent as a whole, and a larger one is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from hydracore.agent.api import BODY_BYTES_MAX
from hydracore.agent.control_plane import ANSWER_BYTES_MAX
from tests.instance_fixtures import RunningInstance, running_instance, shared_api
from tests.lifecycle import BOOT
from tests.services import Services

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: A character that JSON writes in six bytes.
LONG = "\x01"
DOCUMENT_BYTES, SLUGS_BYTES = 256 * 1024, 64 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def instance(services: Services) -> AsyncGenerator[RunningInstance]:
    async with (
        shared_api(services, body_max_bytes=16 * 2**20) as api,
        running_instance(api, reachable=False) as instance,
    ):
        yield instance


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def default_limits(services: Services) -> AsyncGenerator[RunningInstance]:
    """An instance of an API with the default limit for bodies."""
    async with shared_api(services) as api, running_instance(api, reachable=False) as instance:
        yield instance


def texts(whole_bytes: int) -> list[str]:
    """A list that has so many bytes as JSON."""
    whole = ["x" * 1000] * (whole_bytes // 1003)
    whole[-1] += "x" * (whole_bytes - len(msgspec.json.encode(whole)))
    assert len(msgspec.json.encode(whole)) == whole_bytes
    return whole


DOCUMENT = {"x": "x" * (DOCUMENT_BYTES - len(b'{"x":""}'))}
LISTS = {"integrations": texts(DOCUMENT_BYTES), "skills": texts(DOCUMENT_BYTES)}


async def test_the_largest_configuration_reaches_the_agent(instance: RunningInstance) -> None:
    config: dict[str, Any] = {
        "agent_name": LONG * 10_000,
        "recipe_id": LONG * 10_000,
        "system_prompt": LONG * 50_000,
        "customer_facing_prompt": LONG * 50_000,
        "telegram_bot_token": "x" * 256,
        "workflow_slugs": texts(SLUGS_BYTES),
    }
    policy = {"primary": "x" * 200, "embedding_model": "x" * 200, "fallbacks": ["x" * 200] * 8}

    answers = [
        await instance.ask("POST", "/config", config),
        await instance.ask("PATCH", "/platform-config", {"advanced": DOCUMENT, "channels": DOCUMENT, **LISTS}),
        await instance.ask("PATCH", "/model-policy", policy),
    ]
    told = await instance.agent_post("config", {"boot_id": str(BOOT), "config_version": 1})

    assert [answer.status_code for answer in answers] == [200] * 3
    assert told.json()["config_version"] == 4
    assert len(told.content) > 7 * DOCUMENT_BYTES
    # A push to the agent is at most a few words longer.
    assert len(told.content) < min(ANSWER_BYTES_MAX, BODY_BYTES_MAX) - 1024


async def test_the_largest_values_of_a_configuration_fit_the_default_body_limit(
    default_limits: RunningInstance,
) -> None:
    emoji = {"system_prompt": "\U0001f600" * 50_000, "customer_facing_prompt": "\U0001f600" * 50_000}
    escaped = json.dumps({**emoji, "agent_name": "\U0001f600" * 10_000, "recipe_id": "\U0001f600" * 10_000}).encode()
    parts = {"advanced": DOCUMENT, "channels": DOCUMENT, **LISTS, "workflow_slugs": texts(SLUGS_BYTES)}

    prompts = await default_limits.ask("POST", "/config", content=escaped)
    documents = await default_limits.ask("PATCH", "/platform-config", parts)
    again = await default_limits.ask("PATCH", "/platform-config", {"advanced": documents.json()["advanced"]})
    document = {"x": "\U0001f600" * ((DOCUMENT_BYTES - 8) // 4)}
    two_escaped = json.dumps({"advanced": document, "channels": document}).encode()
    others = await default_limits.ask("PATCH", "/platform-config", content=two_escaped)

    assert len(escaped) > 120_000 * len(r"\ud83d\ude00")
    assert [answer.status_code for answer in (prompts, documents, again, others)] == [200] * 4
    assert others.json()["channels"] == document


async def test_documents_that_together_exceed_the_body_limit_are_refused_with_413(
    default_limits: RunningInstance,
) -> None:
    document, items = {"x": "\U0001f600" * ((DOCUMENT_BYTES - 8) // 4)}, ["\U0001f600" * ((DOCUMENT_BYTES - 4) // 4)]
    version = await default_limits.version()
    whole = {"advanced": document, "channels": document, "integrations": items, "skills": items}

    at_once = await default_limits.ask("PATCH", "/platform-config", content=json.dumps(whole).encode())

    assert (at_once.status_code, at_once.json()) == (413, {"detail": f"The body is larger than {2 * 2**20} bytes"})
    assert await default_limits.version() == version


@pytest.mark.parametrize(
    ("method", "path", "field", "value"),
    [
        ("PATCH", "/platform-config", "advanced", {**DOCUMENT, "y": 1}),
        ("PATCH", "/platform-config", "channels", {**DOCUMENT, "y": 1}),
        ("PATCH", "/platform-config", "integrations", [*LISTS["integrations"], "x"]),
        ("PATCH", "/platform-config", "skills", [*LISTS["skills"], "x"]),
        ("PATCH", "/platform-config", "workflow_slugs", [*texts(SLUGS_BYTES), "x"]),
        ("POST", "/config", "workflow_slugs", [*texts(SLUGS_BYTES), "x"]),
        ("POST", "", "workflow_slugs", [*texts(SLUGS_BYTES), "x"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_field_that_exceeds_its_limit_is_refused_and_changes_nothing(
    instance: RunningInstance, method: str, path: str, field: str, value: Any
) -> None:
    version = await instance.version()

    if path:
        answer = await instance.ask(method, path, {field: value})
    else:
        body = {"region_id": "local", "tier_id": "starter", field: value}
        answer = await instance.api.client.post("/v1/instances", json=body, headers=instance.api.token())

    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert (problem["loc"], problem["type"]) == (["body", field], "value_error")
    assert await instance.version() == version
