"""`If-Match`: a configuration is changed only at the version that its caller has seen."""

import asyncio
from typing import Any

import pytest

from hydracore.documents import MASK
from tests.instance_fixtures import (
    RunningInstance,
    execute_commands,
    shared_api_fixture,
    shared_instance_fixture,
    shared_owner_conn_fixture,
    shared_unreachable_fixture,
)
from tests.lifecycle import delete

__all__ = ["shared_api_fixture", "shared_instance_fixture", "shared_owner_conn_fixture", "shared_unreachable_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("method", "path", "body", "other"),
    [
        ("POST", "/config", {"agent_name": "Ada"}, {"agent_name": "Bea"}),
        ("PATCH", "/platform-config", {"advanced": {"a": 1}}, {"advanced": {"b": 2}}),
        ("PATCH", "/model-policy", {"max_tokens": 100}, {"max_tokens": 200}),
    ],
)
async def test_a_change_is_made_only_if_its_if_match_version_is_current(
    instance: RunningInstance, method: str, path: str, body: dict[str, Any], other: dict[str, Any]
) -> None:
    seen = (await instance.ask("GET", "/config")).json()["config_version"]

    made = await instance.ask(method, path, body, headers={"If-Match": f'"{seen}"'})
    refused = await instance.ask(method, path, other, headers={"If-Match": f'"{seen}"'})

    assert (made.status_code, made.json()["config_version"]) == (200, seen + 1)
    assert refused.status_code == 412
    assert refused.json() == {"detail": f"The configuration is at version {seen + 1}; read it again"}
    assert (await instance.state()).config.version == seen + 1


async def test_of_concurrent_changes_with_the_same_if_match_version_exactly_one_is_made(
    instance: RunningInstance,
) -> None:
    seen = (await instance.ask("GET", "/config")).json()["config_version"]
    headers = {"If-Match": f'"{seen}"'}

    answers = await asyncio.gather(
        *(instance.ask("POST", "/config", {"system_prompt": f"You are number {n}"}, headers=headers) for n in range(6))
    )

    assert sorted(answer.status_code for answer in answers) == [200, *[412] * 5]
    (made,) = (answer.json() for answer in answers if answer.status_code == 200)
    shown = (await instance.ask("GET", "/config")).json()
    assert (shown["config_version"], shown["system_prompt"]) == (seen + 1, made["system_prompt"])


async def test_a_stale_version_is_refused_even_if_nothing_would_change(instance: RunningInstance) -> None:
    answer = await instance.ask("POST", "/config", {}, headers={"If-Match": '"7"'})

    assert answer.status_code == 412


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", "/config", {"agent_name": "Ada"}), ("PATCH", "/platform-config", {}), ("PATCH", "/model-policy", {})],
)
async def test_a_change_that_no_version_allows_is_a_409_even_with_a_stale_if_match(
    instance: RunningInstance, method: str, path: str, body: dict[str, Any]
) -> None:
    """A caller that reads the configuration again could still not change it (RFC 9110, section 13.2.1)."""
    await execute_commands(instance.api, instance.instance_id, delete())

    answers = [await instance.ask(method, path, body, headers={"If-Match": tag}) for tag in ('"7"', '"1"')]
    unconditional = await instance.ask(method, path, body)

    assert unconditional.status_code == 409
    assert [(answer.status_code, answer.json()) for answer in answers] == [(409, unconditional.json())] * 2


async def test_a_stale_version_is_refused_before_the_request_is_compared_with_the_configuration(
    instance: RunningInstance,
) -> None:
    """A request that does not fit the present configuration may have fitted the one that the caller has seen."""
    body = {"telegram_bot_token": MASK}

    answers = [await instance.ask("POST", "/config", body, headers={"If-Match": tag}) for tag in ('"7"', '"1"')]

    assert [answer.status_code for answer in answers] == [412, 422]


@pytest.mark.parametrize("given", ["*", '"1"', '"0", "1"', '"a,b" ,"1"', '"1",'])
async def test_if_match_accepts_any_of_several_versions(instance: RunningInstance, given: str) -> None:
    answer = await instance.ask("POST", "/config", {}, headers={"If-Match": given})

    assert answer.status_code == 200


async def test_a_weak_tag_matches_no_version(instance: RunningInstance) -> None:
    """Two weak tags may be the same and what they stand for not (RFC 9110, section 13.1.1)."""
    answer = await instance.ask("POST", "/config", {}, headers={"If-Match": 'W/"1"'})

    assert answer.status_code == 412


@pytest.mark.parametrize("given", ["", "1", '"1', '"1" "2"'])
async def test_an_if_match_that_is_not_a_version_in_quotes_is_refused(instance: RunningInstance, given: str) -> None:
    answer = await instance.ask("POST", "/config", {}, headers={"If-Match": given})

    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == ["header", "if-match"]
    assert problem["msg"] == 'Value error, give the config_version in quotes, such as "7", or *'


async def test_an_if_match_header_that_is_sent_twice_is_refused(instance: RunningInstance) -> None:
    twice = [*instance.api.token().items(), ("If-Match", '"1"'), ("If-Match", '"2"')]

    answer = await instance.api.client.post(f"/v1/instances/{instance.instance_id}/config", json={}, headers=twice)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["header", "if-match"]
