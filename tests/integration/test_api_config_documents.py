"""Documents of the platform's configuration: merged as RFC 7396 says, whole under races, and within bounds."""

import asyncio
import json
from typing import Any

import psycopg
import pytest

from events.commands import PatchPlatformConfig
from hydracore.clock import now_ms
from hydracore.documents import VALUES_MAX
from tests.instance_fixtures import (
    RunningInstance,
    events_of,
    execute_commands,
    shared_api_fixture,
    shared_instance_fixture,
    shared_owner_conn_fixture,
)

__all__ = ["shared_api_fixture", "shared_instance_fixture", "shared_owner_conn_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_documents_are_merged_as_rfc_7396_says(instance: RunningInstance) -> None:
    for patch in (
        {"channels": {"mail": {"host": "a", "password": "hunter2-hunter2"}, "sms": {"on": True}}},
        {"channels": {"mail": {"host": "b"}, "sms": None}, "advanced": {"x": [1]}},
        {"channels": {"mail": {"password": "****ter2", "port": 25}}, "advanced": {"x": {"y": None, "z": 0}}},
    ):
        answer = await instance.ask("PATCH", "/platform-config", patch)
        assert answer.status_code == 200, answer.text

    shown = (await instance.ask("GET", "/platform-config")).json()
    assert shown["channels"] == {"mail": {"host": "b", "password": "****ter2", "port": 25}}
    assert shown["advanced"] == {"x": {"z": 0}}
    assert instance.agent.runtime["platform"]["channels"]["mail"]["password"] == "hunter2-hunter2"
    assert shown["config_version"] == instance.agent.config_version == 4


async def test_a_mask_of_an_earlier_secret_is_refused_and_changes_nothing(instance: RunningInstance) -> None:
    def secrets(last: str) -> dict[str, Any]:
        token = f"1234567890:{last}"
        return {"channels": {"telegram": {"bot_token": token}}, "integrations": [{"id": "crm", "api_key": token}]}

    shown = (await instance.ask("PATCH", "/platform-config", secrets("aaaa"))).json()
    await instance.ask("PATCH", "/platform-config", secrets("bbbb"))
    await instance.ask("POST", "/config", {"telegram_bot_token": "1234567890:cccc"})
    runtime = instance.agent.runtime

    back = await instance.ask("PATCH", "/platform-config", {name: shown[name] for name in ("channels", "integrations")})
    token = await instance.ask("POST", "/config", {"telegram_bot_token": "****aaaa"})

    assert (back.status_code, token.status_code) == (422, 422)
    problems = [*back.json()["detail"], *token.json()["detail"]]
    assert [each["loc"] for each in problems] == [
        ["body", "channels", "telegram", "bot_token"],
        ["body", "integrations", 0, "api_key"],
        ["body", "telegram_bot_token"],
    ]
    assert all("the secret has changed" in each["msg"] for each in problems)
    assert instance.agent.runtime is runtime


async def test_masked_items_that_look_alike_can_be_sent_back_all_together_and_not_in_part(
    instance: RunningInstance,
) -> None:
    url = "https://user:hunter2hunter2@db.example/x"
    items = [{"id": url, "note": "n"}, {"id": "a", "token": "short1"}, {"id": "a", "token": "short2"}]
    given = {
        "integrations": items,
        "skills": items,
        "advanced": {"dsns": items},
        "channels": {"Secret": [{"id": "short1"}, {"id": "short2"}]},
    }
    await instance.ask("PATCH", "/platform-config", given)
    runtime = instance.agent.runtime
    shown = (await instance.ask("GET", "/platform-config")).json()

    same = await instance.ask("PATCH", "/platform-config", {name: shown[name] for name in given})
    unclear = await instance.ask("PATCH", "/platform-config", {"integrations": shown["integrations"][:2]})

    assert (same.status_code, same.json()["message"].split(".")[0]) == (200, "Nothing to change")
    assert instance.agent.runtime["platform"]["integrations"] == runtime["platform"]["integrations"] == items
    assert shown["integrations"] == [
        {"id": "****le/x", "note": "n"},
        {"id": "a", "token": "****"},
        {"id": "a", "token": "****"},
    ]
    (problem,) = unclear.json()["detail"]
    assert (unclear.status_code, problem["loc"]) == (422, ["body", "integrations", 1, "token"])
    assert "there are several like it" in problem["msg"]
    assert "give the secret itself" in problem["msg"]


async def test_a_mask_sent_in_another_field_than_its_secret_is_refused(instance: RunningInstance) -> None:
    url = "https://user:hunter2hunter2@db.example/x"
    shown = (await instance.ask("PATCH", "/platform-config", {"integrations": [url]})).json()["integrations"]

    moved = await instance.ask("PATCH", "/platform-config", {"skills": shown})
    again = await instance.ask("PATCH", "/platform-config", {"integrations": shown})

    assert [each["loc"] for each in moved.json()["detail"]] == [["body", "skills", 0]]
    assert again.json()["message"].startswith("Nothing to change")
    assert instance.agent.runtime["platform"]["integrations"] == [url]


async def test_ciphertext_copied_out_of_the_log_is_not_decrypted(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    async def last_patch() -> dict[str, Any]:
        return (await events_of(owner_conn, instance.instance_id, "platform_config_patched"))[-1]

    await instance.ask("PATCH", "/platform-config", {"integrations": [{"id": "crm", "api_key": "hunter2-hunter2"}]})
    copied = (await last_patch())["integrations"][0]["api_key"]

    given = [copied, {"notes": [copied], "api_key": copied}]
    answer = await instance.ask("PATCH", "/platform-config", {"skills": given})

    assert answer.json()["skills"] == [copied, {"notes": [copied], "api_key": f"****{copied[-4:]}"}]
    assert instance.agent.runtime["platform"]["skills"] == given
    assert copied not in repr(await last_patch()), "it is sealed again like any secret"


async def test_a_secret_stored_before_it_counted_as_one_is_masked_and_can_be_sent_back(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    old = {"id": "crm", "headers": [{"name": "API Key", "value": "hunter2-hunter2"}], "smtp.pass": "hunter2-hunter2"}
    await execute_commands(instance.api, instance.instance_id, PatchPlatformConfig(at_ms=now_ms(), integrations=(old,)))

    shown = (await instance.ask("GET", "/platform-config")).json()["integrations"]
    told = (await instance.ask("GET", "/events", params={"type": "platform_config_patched"})).text
    back = await instance.ask("PATCH", "/platform-config", {"integrations": [shown[0] | {"note": "new"}]})

    assert shown == [{"id": "crm", "headers": [{"name": "API Key", "value": "****ter2"}], "smtp.pass": "****ter2"}]
    assert "****ter2" in told
    assert "hunter2-hunter2" not in told
    assert back.status_code == 200
    assert instance.agent.runtime["platform"]["integrations"] == [old | {"note": "new"}]
    assert "hunter2" not in repr((await events_of(owner_conn, instance.instance_id, "platform_config_patched"))[-1])


async def test_one_and_true_are_different_values(instance: RunningInstance) -> None:
    for value in (1, True, 1):
        answer = await instance.ask("PATCH", "/platform-config", {"advanced": {"x": value}, "integrations": [value]})

        assert answer.json()["message"].startswith("Platform configuration updated")
        assert instance.agent.runtime["platform"]["advanced"]["x"] is value
        assert instance.agent.runtime["platform"]["integrations"][0] is value


async def test_lists_are_replaced_as_a_whole_and_null_clears_a_field(instance: RunningInstance) -> None:
    first = await instance.ask(
        "PATCH",
        "/platform-config",
        {
            "skills": ["notes", {"id": "x", "level": 2}],
            "integrations": [{"api_key": "abcdefghijklmnop"}],
            "workflow_slugs": ["a"],
            "recipe_id": "product_expert",
            "advanced": {"a": 1},
        },
    )
    runtime = instance.agent.runtime
    same = await instance.ask("PATCH", "/platform-config", {"integrations": [{"api_key": "****mnop"}]})
    cleared = await instance.ask(
        "PATCH",
        "/platform-config",
        dict.fromkeys(("skills", "integrations", "workflow_slugs", "recipe_id", "advanced", "channels")),
    )

    assert first.json()["skills"] == ["notes", {"id": "x", "level": 2}]
    assert first.json()["integrations"] == [{"api_key": "****mnop"}]
    assert runtime["platform"]["integrations"] == [{"api_key": "abcdefghijklmnop"}]
    assert runtime["recipe"]["id"] == "product_expert"
    assert same.json()["message"].startswith("Nothing to change")
    shown = {
        name: cleared.json()[name] for name in ("skills", "integrations", "workflow_slugs", "recipe_id", "advanced")
    }
    assert shown == {"skills": [], "integrations": [], "workflow_slugs": [], "recipe_id": None, "advanced": {}}


async def test_workflow_slugs_that_are_not_strings_are_shown_as_their_json(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    named = {"workflow_slugs": [1, None, {}, "a", {"token": "hunter2-of-a-workflow"}, [2.5, True]]}

    first = await instance.ask("PATCH", "/platform-config", named)
    again = await instance.ask("PATCH", "/platform-config", named)

    slugs = ["1", "null", "{}", "a", '{"token":"****flow"}', "[2.5,true]"]
    assert first.json()["workflow_slugs"] == instance.agent.runtime["workflow_slugs"] == slugs
    assert "Note on workflow_slugs: unknown: 1, null, {}, a, {" in first.json()["message"]
    assert again.json()["message"].startswith("Nothing to change")
    assert "hunter2" not in str(await events_of(owner_conn, instance.instance_id, "platform_config_patched"))


async def test_no_concurrent_patch_is_lost(instance: RunningInstance, owner_conn: psycopg.AsyncConnection) -> None:
    patches = [{"channels": {f"c{number}": number}, "advanced": {"of": {str(number): 1}}} for number in range(12)]

    answers = await asyncio.gather(*(instance.ask("PATCH", "/platform-config", patch) for patch in patches))

    assert {answer.status_code for answer in answers} == {200}
    shown = (await instance.ask("GET", "/platform-config")).json()
    assert shown["channels"] == {f"c{number}": number for number in range(12)}
    assert shown["advanced"] == {"of": {str(number): 1 for number in range(12)}}
    assert len(await events_of(owner_conn, instance.instance_id, "platform_config_patched")) == 12


async def test_a_patch_that_makes_a_document_too_large_is_refused(instance: RunningInstance) -> None:
    statuses = [
        (await instance.ask("PATCH", "/platform-config", {"advanced": {f"part{number}": "x" * 60_000}})).status_code
        for number in range(5)
    ]

    assert statuses == [200] * 4 + [422]


@pytest.mark.parametrize(
    ("field", "value"),
    [("advanced", {"token": "****", "x": "x" * 300_000}), ("integrations", [{"token": "****", "x": "x" * 300_000}])],
    ids=["of_a_document", "of_a_list"],
)
async def test_a_document_that_is_too_large_is_refused_before_its_masks_are_resolved(
    instance: RunningInstance, field: str, value: Any
) -> None:
    answer = await instance.ask("PATCH", "/platform-config", {field: value})

    (problem,) = answer.json()["detail"]
    assert (answer.status_code, problem["loc"]) == (422, ["body", field])
    assert problem["msg"] == "Value error, it must not exceed 262144 bytes"


async def test_a_document_that_exceeds_the_limit_only_by_its_masks_can_be_sent_back(instance: RunningInstance) -> None:
    tokens = {f"token{number}": "" for number in range(9_500)}
    first = {"advanced": tokens | {"x": "x" * 100_000}}
    shown = (await instance.ask("PATCH", "/platform-config", first)).json()
    changed = {"advanced": shown["advanced"] | {"x": "y" * 100_000}}
    assert len(json.dumps(changed["advanced"], separators=(",", ":"))) > 256 * 1024

    answer = await instance.ask("PATCH", "/platform-config", changed)

    assert answer.status_code == 200, answer.text[:300]
    assert instance.agent.runtime["platform"]["advanced"] == tokens | {"x": "y" * 100_000}


@pytest.mark.parametrize(
    ("field", "value"),
    [("advanced", {"a": [0] * VALUES_MAX}), ("integrations", [[0] * (VALUES_MAX // 2)] * 2)],
    ids=["of_a_document", "of_a_list_together"],
)
async def test_a_document_with_too_many_values_is_refused(instance: RunningInstance, field: str, value: Any) -> None:
    answer = await instance.ask("PATCH", "/platform-config", {field: value})

    assert (answer.status_code, answer.json()["detail"]) == (422, [too_many(field)])


async def test_a_patch_that_gives_a_document_too_many_values_is_refused(instance: RunningInstance) -> None:
    first, second = [{"channels": {name: [0] * (VALUES_MAX // 2)}} for name in "ab"]

    answers = [await instance.ask("PATCH", "/platform-config", patch) for patch in (first, second, first)]

    assert [answer.status_code for answer in answers] == [200, 422, 200]
    assert answers[1].json()["detail"] == [too_many("channels")]


def too_many(field: str) -> dict[str, Any]:
    return {"loc": ["body", field], "msg": "Value error, documents may have 20,000 values", "type": "value_error"}


async def test_a_refusal_lists_at_most_100_problems_and_shortens_their_names(instance: RunningInstance) -> None:
    answer = await instance.ask("PATCH", "/platform-config", {"advanced": {"x" * 10_000: ["\0"] * 1_000}})

    assert answer.status_code == 422
    problems = answer.json()["detail"]
    assert [problem["loc"] for problem in problems] == [["body", "advanced", "x" * 100, index] for index in range(100)]


@pytest.mark.parametrize(
    "raw", [b'{"advanced":{"a":NaN}}', b'{"advanced":{"a":"\\ud800"}}', b'{"skills":[{"\\ud800":1}]}']
)
async def test_documents_with_invalid_json_are_refused(instance: RunningInstance, raw: bytes) -> None:
    headers = {**instance.api.token(), "Content-Type": "application/json"}

    answer = await instance.api.client.patch(
        f"/v1/instances/{instance.instance_id}/platform-config", content=raw, headers=headers
    )

    assert answer.status_code == 422


@pytest.mark.parametrize("depth", [33, 200, 5000])
async def test_documents_nested_too_deeply_are_refused_however_deep_they_are(
    instance: RunningInstance, depth: int
) -> None:
    raw = b'{"advanced":' + b'{"a":' * depth + b"1" + b"}" * (depth + 1)

    answer = await instance.api.client.patch(
        f"/v1/instances/{instance.instance_id}/platform-config", content=raw, headers=instance.api.token()
    )

    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert (problem["loc"][0], problem["msg"]) == ("body", "Value error, documents may be 32 levels deep")
