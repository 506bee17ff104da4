"""Configuration over HTTP: an event first, then the agent; sealed in the log, masked on the way back."""

import asyncio
from typing import Any

import psycopg
import pytest

from events.commands import PatchPlatformConfig
from tests.api_server import Api
from tests.instance_fixtures import (
    RunningInstance,
    execute_commands,
    make_failed,
    make_lost,
    request_instance,
    shared_api_fixture,
    shared_instance_fixture,
    shared_owner_conn_fixture,
    shared_unreachable_fixture,
)
from tests.lifecycle import BOOT, delete
from tests.waiting import PATIENCE_S, until

__all__ = ["shared_api_fixture", "shared_instance_fixture", "shared_owner_conn_fixture", "shared_unreachable_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

BOT_TOKEN = "1234567890:AAH-abcdefghijklmnop"
EVERYTHING = {
    "agent_name": "Ada",
    "customer_facing_prompt": "Be nice to customers",
    "model_temperature": 0.2,
    "recipe_id": "daily_briefing",
    "system_prompt": "You are Ada",
    "telegram_bot_token": BOT_TOKEN,
    "workflow_slugs": ["weekly-review", "complaint"],
}
SHOWN = EVERYTHING | {"telegram_bot_token": "****mnop"}
REMOTE = [
    {"endpoint": "https://ann:hunter2@crm.test/in", "smtp": {"host": "mail.test", "pass": "hunter2-in-a-pass"}},
    {
        "headers": [{"name": "Authorization", "value": "Bearer hunter2-in-a-header"}],
        "args": ["--url", "amqp://hunter2@q"],
    },
]


#: A text in the form of a sealed one, which a caller may write too.
SEALED_FORM = "v1." + "QUJD" * 12


async def test_a_changed_configuration_is_shown_and_reaches_the_agent(instance: RunningInstance) -> None:
    answer = await instance.ask("POST", "/config", EVERYTHING)
    shown = await instance.ask("GET", "/config")

    assert answer.status_code == 200
    changed = answer.json()
    assert {name: changed[name] for name in SHOWN} == SHOWN
    assert (changed["config_version"], changed["applied"]) == (2, True)
    assert changed["message"] == "Configuration updated. The agent runs with it"
    assert {name: shown.json()[name] for name in SHOWN} == SHOWN
    assert shown.json()["running"] == {"config_version": 2, "system_prompt": "You are Ada"}
    (push,) = instance.agent.calls_of("/api/config")[:1]
    runtime = push.body["runtime"]
    assert push.body["config_version"] == 2
    assert (runtime["type"], runtime["agent_name"], runtime["system_prompt"]) == ("expressclaw", "Ada", "You are Ada")
    assert runtime["telegram"]["bot_token"] == BOT_TOKEN
    assert runtime["preset"]["id"] == "personal_assistant"
    assert runtime["recipe"]["id"] == "daily_briefing"
    assert runtime["model_policy"]["temperature"] == 0.2
    assert runtime["workflow_slugs"] == [each["slug"] for each in runtime["workflows"]] == EVERYTHING["workflow_slugs"]


async def test_only_given_fields_change_and_null_clears_a_field(instance: RunningInstance) -> None:
    await instance.ask("POST", "/config", EVERYTHING)

    await instance.ask("POST", "/config", {"agent_name": "Bea"})
    await instance.ask("POST", "/config", dict.fromkeys(("system_prompt", "telegram_bot_token", "workflow_slugs")))

    shown = (await instance.ask("GET", "/config")).json()
    assert {name: shown[name] for name in SHOWN} == SHOWN | {
        "agent_name": "Bea",
        "system_prompt": None,
        "telegram_bot_token": None,
        "workflow_slugs": [],
    }
    assert shown["config_version"] == 4


async def test_a_request_that_changes_nothing_appends_no_event(instance: RunningInstance) -> None:
    await instance.ask("POST", "/config", EVERYTHING)
    version = await instance.version()

    again = await instance.ask("POST", "/config", EVERYTHING)
    masked = await instance.ask("POST", "/config", {"telegram_bot_token": "****mnop"})
    nothing = await instance.ask("POST", "/config", {})

    assert [answer.status_code for answer in (again, masked, nothing)] == [200] * 3
    assert again.json()["message"].startswith("Nothing to change")
    assert await instance.version() == version
    assert (await instance.ask("GET", "/config")).json()["telegram_bot_token"] == "****mnop"


async def test_prompts_and_tokens_are_ciphertext_in_the_log(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    await instance.ask("POST", "/config", EVERYTHING)
    await instance.ask(
        "PATCH",
        "/platform-config",
        {
            "channels": {"mail": {"password": "hunter2-in-channels"}},
            "advanced": {"note": "private-note"},
            "integrations": [
                {"name": "crm", "api_key": "hunter2-in-integrations"},
                {"type": "webhook", "url": "https://chat.test/hunter2-in-an-address", "cookie": "hunter2=1"},
                *REMOTE,
            ],
        },
    )
    shown = (await instance.ask("GET", "/platform-config")).json()["integrations"]
    again = await instance.ask("PATCH", "/platform-config", {"integrations": shown})

    rows = await (await owner_conn.execute("SELECT row_to_json(e)::text FROM event e")).fetchall()

    text = "".join(row[0] for row in rows)
    assert "config_changed" in text
    assert "crm" in text
    assert "hunter2" not in str(shown)
    # The agent gets every secret in clear.
    assert instance.agent.runtime["platform"]["integrations"][2:] == REMOTE
    assert again.status_code == 200
    for secret in ("You are Ada", "Be nice", BOT_TOKEN, "hunter2", "private-note"):
        assert secret not in text


async def test_a_text_that_looks_sealed_is_stored_like_any_other(instance: RunningInstance) -> None:
    items = [{"version": SEALED_FORM, "token": "x"}]

    changed = await instance.ask("PATCH", "/platform-config", {"integrations": items})

    assert changed.json()["integrations"] == [{"version": SEALED_FORM, "token": "****"}]
    assert instance.agent.runtime["platform"]["integrations"] == items


async def test_a_text_stored_before_its_field_counted_as_secret_is_masked_and_can_be_sent_back(
    instance: RunningInstance,
) -> None:
    hook = {"id": "crm", "type": "webhook", "url": "https://chat.test/of-old", "dsn": "v1.of-old"}
    await execute_commands(instance.api, instance.instance_id, PatchPlatformConfig(at_ms=1, integrations=(hook,)))

    shown = (await instance.ask("GET", "/platform-config")).json()["integrations"]
    sent_back = await instance.ask("PATCH", "/platform-config", {"integrations": shown, "advanced": {"a": 1}})

    assert shown == [hook | {"url": "****-old", "dsn": "****"}]
    assert sent_back.status_code == 200
    assert instance.agent.runtime["platform"]["integrations"] == [hook]


async def test_an_unreachable_agent_gets_a_changed_configuration_when_it_asks(unreachable: RunningInstance) -> None:
    answer = await unreachable.ask("POST", "/config", {"system_prompt": "New"})
    shown = await unreachable.ask("GET", "/config")
    asked = await unreachable.agent_post("config", {"boot_id": str(BOOT), "config_version": 1})

    assert answer.status_code == 200
    assert answer.json()["applied"] is False
    assert "when the agent next asks" in answer.json()["message"]
    assert (shown.json()["running"], shown.json()["system_prompt"]) == (None, "New")
    assert asked.json()["config_version"] == 2
    assert asked.json()["runtime"]["system_prompt"] == "New"


async def test_a_configuration_read_beyond_the_limit_of_one_agent_does_not_ask_the_agent(
    instance: RunningInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.configuration.READS_MAX", 1)
    monkeypatch.setattr("hydracore.api.configuration.ASK_TIMEOUT_S", PATIENCE_S)
    instance.agent.may_answer.clear()
    asking = asyncio.create_task(instance.ask("GET", "/config"))
    await until(lambda: instance.agent.calls_of("/api/config"))

    without = await instance.ask("GET", "/config")
    instance.agent.may_answer.set()

    assert (without.status_code, without.json()["running"]) == (200, None)
    assert (await asking).json()["running"]["config_version"] == 1
    assert len(instance.agent.calls_of("/api/config")) == 1


@pytest.mark.parametrize(
    ("running", "pushed", "shown"),
    [
        (1, "has not taken it yet", "runs with another version"),
        (9, "runs with another version", "runs with another version"),
        (None, "runtime runs again", "runtime does not run"),
    ],
)
async def test_a_configuration_that_the_agent_does_not_run_yet_is_reported_as_not_applied(
    instance: RunningInstance, running: int | None, pushed: str, shown: str
) -> None:
    instance.agent.config_version = running
    instance.agent.script("/api/config", 200, {"config_version": running})

    answer = (await instance.ask("POST", "/config", {"agent_name": "Ada"})).json()
    drifted = (await instance.ask("GET", "/config")).json()

    assert (answer["applied"], answer["config_version"]) == (False, 2)
    assert (drifted["applied"], drifted["running"]["config_version"]) == (False, running)
    assert pushed in answer["message"]
    assert shown in drifted["message"]


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (422, {"code": "config_invalid", "detail": "no such model"}, "The agent cannot run with it: no such model"),
        (422, {}, "The agent cannot run with it: it gave no reason"),
        (500, {"detail": "oops"}, "The agent cannot be reached; it is applied when the agent next asks"),
    ],
)
async def test_a_configuration_that_the_agent_refuses_or_fails_to_take_is_answered_with_the_reason(
    instance: RunningInstance, status: int, body: dict[str, str], told: str
) -> None:
    instance.agent.script("/api/config", status, body)

    answer = (await instance.ask("POST", "/config", {"agent_name": "Ada"})).json()

    assert (answer["applied"], answer["config_version"], answer["agent_name"]) == (False, 2, "Ada")
    assert answer["message"] == f"Configuration updated. {told}"


async def test_a_configuration_can_be_changed_before_the_agent_runs_and_not_during_deletion(api: Api) -> None:
    instance_id = await request_instance(api)
    path = f"/v1/instances/{instance_id}/config"

    early = await api.client.post(path, json={"agent_name": "Early"}, headers=api.token())
    await execute_commands(api, instance_id, delete())
    late = await api.client.post(path, json={"agent_name": "Late"}, headers=api.token())
    shown = await api.client.get(path, headers=api.token())

    assert (early.status_code, early.json()["applied"]) == (200, False)
    assert "when it starts" in early.json()["message"]
    assert late.status_code == 409
    assert (shown.status_code, shown.json()["agent_name"]) == (200, "Early")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (None, "The agent gets it when it starts"),
        (make_failed, "It is saved; the instance is failed and runs nothing"),
        (make_lost, "It is saved; the instance is error and runs nothing"),
    ],
)
async def test_a_change_without_a_running_agent_is_saved_and_reported_as_not_applied(
    api: Api, make: Any, told: str
) -> None:
    instance_id = await request_instance(api)
    if make is not None:
        await make(api, instance_id)

    answer = await api.client.post(
        f"/v1/instances/{instance_id}/config", json={"agent_name": "Ada"}, headers=api.token()
    )

    assert (answer.status_code, answer.json()["applied"]) == (200, False)
    assert answer.json()["message"] == f"Configuration updated. {told}"


async def test_the_answer_notes_an_unknown_recipe_and_an_overridden_temperature(instance: RunningInstance) -> None:
    await instance.ask("PATCH", "/model-policy", {"temperature": 1.5})

    answer = (await instance.ask("POST", "/config", {"recipe_id": "nonsense", "model_temperature": 0.1})).json()

    assert "unknown recipe; known: appointment_desk" in answer["message"]
    assert "the model policy's 1.5 takes precedence" in answer["message"]
    renamed = (await instance.ask("POST", "/config", {"agent_name": "Ada"})).json()
    assert "Note on" not in renamed["message"]
    assert instance.agent.runtime["model_policy"]["temperature"] == 1.5
    assert instance.agent.runtime["recipe"] is None


@pytest.mark.parametrize(
    ("method", "path", "body", "where"),
    [
        ("POST", "/config", {"model_temperature": 2.1}, ["model_temperature"]),
        ("POST", "/config", {"model_temperature": -0.1}, ["model_temperature"]),
        ("POST", "/config", {"telegram_bot_token": "1:a/../b"}, ["telegram_bot_token"]),
        ("POST", "/config", {"telegram_bot_token": "****zzzz"}, ["telegram_bot_token"]),
        ("POST", "/config", {"telegram_bot_token": ""}, ["telegram_bot_token"]),
        ("POST", "/config", {"workflow_slugs": [1]}, ["workflow_slugs", 0]),
        ("POST", "/config", {"system_prompt": "a\0"}, ["system_prompt"]),
        ("POST", "/config", {"agent_name": 1, "recipe_id": 2}, ["agent_name"]),
        ("POST", "/config", [], []),
        ("PATCH", "/platform-config", {"advanced": []}, ["advanced"]),
        ("PATCH", "/platform-config", {"channels": "x"}, ["channels"]),
        ("PATCH", "/platform-config", {"skills": {}}, ["skills"]),
        ("PATCH", "/platform-config", {"integrations": [{"a": "x\0"}]}, ["integrations", 0, "a"]),
        ("PATCH", "/platform-config", {"workflow_slugs": [{"a": "x\0"}]}, ["workflow_slugs", 0, "a"]),
        ("PATCH", "/model-policy", {"temperature": 2.01}, ["temperature"]),
        ("PATCH", "/model-policy", {"temperature": "warm"}, ["temperature"]),
        ("PATCH", "/model-policy", {"budget_daily_usd": -1}, ["budget_daily_usd"]),
        ("PATCH", "/model-policy", {"budget_monthly_usd": -0.01}, ["budget_monthly_usd"]),
        ("PATCH", "/model-policy", {"budget_daily_usd": False}, ["budget_daily_usd"]),
        ("PATCH", "/model-policy", {"max_tokens": True}, ["max_tokens"]),
        ("PATCH", "/model-policy", {"max_tokens": 0}, ["max_tokens"]),
        ("PATCH", "/model-policy", {"max_tokens": 1.5}, ["max_tokens"]),
        ("PATCH", "/model-policy", {"primary": ""}, ["primary"]),
        ("PATCH", "/model-policy", {"primary": "a\r\nb: c"}, ["primary"]),
        ("PATCH", "/model-policy", {"embedding_model": "a\x85"}, ["embedding_model"]),
        ("PATCH", "/model-policy", {"fallbacks": ["a\n"]}, ["fallbacks", 0]),
        ("PATCH", "/model-policy", {"fallbacks": [None]}, ["fallbacks", 0]),
    ],
    ids=str,
)
async def test_an_invalid_value_is_refused_and_changes_nothing(
    instance: RunningInstance, method: str, path: str, body: Any, where: list[str | int]
) -> None:
    version = await instance.version()

    answer = await instance.ask(method, path, body)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", *where]
    assert await instance.version() == version
    assert instance.agent.calls == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/config", None),
        ("POST", "/config", {"agent_name": "Eve"}),
        ("GET", "/platform-config", None),
        ("PATCH", "/platform-config", {"advanced": {"a": 1}}),
        ("PATCH", "/model-policy", {"max_tokens": 5}),
    ],
)
async def test_staff_may_configure_and_other_customers_and_tenants_may_not(
    instance: RunningInstance, method: str, path: str, body: Any
) -> None:
    api, version = instance.api, await instance.version()
    refused = {
        401: {"Authorization": "Bearer nonsense"},
        403: api.token(user="bob"),
        404: api.token(tenant="rival", role="admin"),
    }

    for status, headers in refused.items():
        assert (await instance.ask(method, path, body, headers=headers)).status_code == status
    assert await instance.version() == version
    admin = await instance.ask(method, path, body, headers=api.token(user="root", role="admin"))

    assert admin.status_code == 200
