"""The past over HTTP: an instance as it was, and its events, shown to its owner and to staff as far as they may see it."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio
from click.testing import CliRunner
from structlog.testing import capture_logs

from events import commands as c
from events.errors import LogCorrupted
from hydracore.api import history
from hydracore.auth import Role
from hydracore.cli import main
from tests.api_server import Api, bearer
from tests.instance_fixtures import (
    RunningInstance,
    execute_commands,
    module_api_fixture,
    shared_instance_fixture,
    shared_owner_conn_fixture,
    tenant_api_fixture,
)
from tests.lifecycle import NOW_MS

__all__ = ["module_api_fixture", "shared_instance_fixture", "shared_owner_conn_fixture", "tenant_api_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]

PROMPT, TOKEN, API_KEY = "You know that Ann is ill", "123456:the-bot-token", "sk-the-key-of-the-mailbox"
PERSONAL = ("ann@example.com", "Ann Example", PROMPT)
SECRETS = (TOKEN, API_KEY, "the-token-in-advanced")


async def make_personal(instance: RunningInstance) -> None:
    await instance.ask("POST", "/config", {"system_prompt": PROMPT, "telegram_bot_token": TOKEN})
    documents = {"advanced": {"depth": 1, "token": SECRETS[2]}, "integrations": [{"id": "mail", "api_key": API_KEY}]}
    await instance.ask("PATCH", "/platform-config", documents)


@pytest_asyncio.fixture(loop_scope="module", name="personal")
async def personal_fixture(api: Api) -> Any:
    """An instance of ann's with something in every field that is sealed."""
    headers = api.token(email=PERSONAL[0])
    body = {"region_id": "local", "tier_id": "starter", "user_display_name": PERSONAL[1], "agent_name": "Ada"}
    answer = await api.client.post("/v1/instances", json=body, headers=headers)
    instance = RunningInstance(api, UUID(answer.json()["instance_id"]), None)  # type: ignore[arg-type] - no agent is asked anything here
    await make_personal(instance)
    return instance


async def everything(instance: RunningInstance, query: str = "", headers: dict[str, str] | None = None) -> list[Json]:
    """All pages, each found by the link of the one before."""
    path = f"/events{query}"
    events: list[Json] = []
    while True:
        answer = await instance.ask("GET", path, headers=headers or {})
        assert answer.status_code == 200, answer.text
        events += answer.json()["events"]
        if "next" not in answer.links:
            return events
        path = answer.links["next"]["url"].removeprefix(f"/v1/instances/{instance.instance_id}")


async def test_an_instance_can_be_read_as_it_was_at_any_version_or_time(instance: RunningInstance) -> None:
    states = [(await instance.ask("GET", "")).content]
    for name in ("Bea", "Cleo"):
        await instance.ask("POST", "/config", {"agent_name": name})
        states.append((await instance.ask("GET", "")).content)
    newest = await instance.version()

    for back, state in enumerate(reversed(states)):
        then = (await instance.ask("GET", f"?version={newest - back}")).json()
        at = (await instance.ask("GET", f"?at={then['recorded_at']}")).json()
        added = {name: then.pop(name) for name in ("version", "recorded_at", "state")}
        assert json.dumps(then, separators=(",", ":")).encode() == state
        assert added["version"] == added["state"]["version"] == newest - back
        assert added["state"]["agent_name"] == then["agent_name"]
        assert at == then | added
    first = (await instance.ask("GET", "?version=1")).json()
    assert (first["status"], first["hostname"], first["callback_seq"]) == ("pending", None, None)


async def test_the_owner_sees_personal_data_in_clear_and_secrets_masked(personal: RunningInstance) -> None:
    events = json.dumps(await everything(personal))
    state = (await personal.ask("GET", f"?version={await personal.version()}")).json()["state"]

    for personal_text in PERSONAL:
        assert personal_text in events
        assert personal_text in json.dumps(state)
    for secret in SECRETS:
        assert secret not in events + json.dumps(state)
    assert state["config"]["telegram_bot_token"] == "****oken"
    assert state["config"]["advanced"] == {"depth": 1, "token": "****nced"}
    assert state["config"]["integrations"] == [{"id": "mail", "api_key": "****lbox"}]


@pytest.mark.parametrize("role", ["admin", "platform"])
async def test_staff_sees_personal_data_only_with_consent_and_secrets_never(
    personal: RunningInstance, role: Role
) -> None:
    staff = personal.api.token(None if role == "admin" else "ours", "boss", role)

    async def seen() -> str:
        then = await personal.ask("GET", f"?version={version}", headers=staff)
        return json.dumps([await everything(personal, headers=staff), then.json()])

    version = await personal.version()
    before = await seen()
    await personal.ask("PATCH", "/consent", {"consent_debug_access": True})
    during = await seen()
    await personal.ask("PATCH", "/consent", {"consent_debug_access": False})
    after = await seen()

    for text in (before, after):
        assert not [secret for secret in (*PERSONAL, *SECRETS) if secret in text]
        assert '"system_prompt": "(sealed)"' in text
        assert "v1." not in text
    assert all(text in during for text in PERSONAL)
    assert not [secret for secret in SECRETS if secret in during]


async def test_consent_can_be_withdrawn_while_an_instance_is_being_deleted(personal: RunningInstance) -> None:
    staff = personal.api.token(None, "boss", "admin")
    await personal.ask("PATCH", "/consent", {"consent_debug_access": True})
    await personal.ask("DELETE", "")
    during = json.dumps(await everything(personal, headers=staff))

    withdrawn = await personal.ask("PATCH", "/consent", {"consent_debug_access": False})

    assert withdrawn.json()["consent_debug_access"] is False
    after = json.dumps(await everything(personal, headers=staff))
    assert [text in during for text in PERSONAL] == [True] * len(PERSONAL)
    assert [text in after for text in PERSONAL] == [False] * len(PERSONAL)


async def test_the_history_of_an_erased_customer_shows_no_personal_data(
    personal: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    version = await personal.version()
    await owner_conn.execute(
        "UPDATE customer_key SET wrapped_key = NULL, destroyed_at = now() WHERE tenant_id = %s", (personal.api.tenant,)
    )
    for customer in personal.api.parts.keyring._customers:
        customer.stale_at = 0.0  # as by itself within seconds

    then = (await personal.ask("GET", f"?version={version}")).json()["state"]

    assert then["user_display_name"] == then["config"]["system_prompt"] == "(erased)"
    assert then["config"]["integrations"] == [{"id": "mail", "api_key": "(erased)"}]
    assert not [text for text in PERSONAL if text in json.dumps(await everything(personal))]


async def test_a_text_that_looks_sealed_is_shown_in_a_field_that_is_never_sealed(personal: RunningInstance) -> None:
    lookalike = "v1." + "QUJD" * 12
    await personal.ask("POST", "/config", {"agent_name": lookalike})
    await execute_commands(
        personal.api, personal.instance_id, c.PatchPlatformConfig(at_ms=NOW_MS, skills=(lookalike, "notes"))
    )

    state = (await personal.ask("GET", f"?version={await personal.version()}")).json()["state"]

    assert (state["agent_name"], state["config"]["skills"]) == (lookalike, ["(sealed)", "notes"])


async def test_pages_and_filters_give_exactly_the_matching_events(instance: RunningInstance) -> None:
    # Other events lie between this change and the order, so that a filter that a next page loses shows.
    await instance.ask("POST", "/config", {"agent_name": "Bea"})
    whole = await everything(instance, "?limit=500")

    assert [event["version"] for event in whole] == list(range(1, await instance.version() + 1))
    assert await everything(instance, "?limit=2") == whole
    reported = [event for event in whole if event["type"] in {"agent_enrolled", "server_created"}]
    assert await everything(instance, "?limit=1&type=agent_enrolled,ServerCreated") == reported
    assert await everything(instance, "?limit=1&actor=customer") == [
        event for event in whole if "ann" in event["actor"]
    ]
    since, until = whole[2]["recorded_at"], whole[5]["recorded_at"]
    between = [event for event in whole if since <= event["recorded_at"] <= until]
    assert await everything(instance, f"?limit=2&since={since}&until={until}") == between
    first, last = whole[0]["recorded_at"][:10], whole[-1]["recorded_at"][:10]
    assert await everything(instance, f"?since={first}&until={last}") == whole
    assert await everything(instance, "?since=2999-01-01") == []
    # Nothing follows a page that ends with the last event.
    assert "next" not in (await instance.ask("GET", f"/events?limit={len(whole)}")).links


async def test_a_page_of_events_ends_before_its_limit_once_it_has_enough_bytes(
    instance: RunningInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = await everything(instance, "?limit=500")
    monkeypatch.setattr(history, "PAGE_BYTES", 1)

    page = await instance.ask("GET", "/events?limit=500")

    assert page.json()["events"] == whole[:1]
    assert await everything(instance, "?limit=500") == whole


async def test_an_out_of_range_time_is_listed_as_a_number_and_makes_past_states_unreadable(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    never_ms = 99_999_999_999_999_999
    await owner_conn.execute(
        b"UPDATE event SET payload = regexp_replace(payload::text, '(.at_ms.:)[0-9]+', '\\1' || %s)::json"
        b" WHERE stream_id = %s AND version = 1",
        (str(never_ms), instance.instance_id),
    )

    first, second, *_ = await everything(instance)
    with capture_logs() as lines:
        as_it_was = [await instance.ask("GET", query) for query in ("?version=1", f"?at={first['recorded_at']}")]

    assert first["happened_at"] == never_ms
    assert second["happened_at"].endswith("Z")
    for answer in as_it_was:
        assert (answer.status_code, answer.json()) == (500, {"detail": "The history of this instance cannot be read"})
    assert [(line["event"], type(line["exc_info"])) for line in lines] == [("request_failed", LogCorrupted)] * 2
    assert f"stream {instance.instance_id} has a time that is out of range" in str(lines[0]["exc_info"])


@pytest.mark.parametrize("forged_ms", [str(10**17), str(-(10**17)), "9" * 400])
async def test_a_change_after_an_out_of_range_time_is_refused_and_logged_with_lane_and_seq(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection, forged_ms: str
) -> None:
    forgery = await owner_conn.execute(
        b"UPDATE event SET payload = regexp_replace(payload::text, '(.at_ms.:)[0-9]+', '\\1 ' || %s)::json"
        b" WHERE stream_id = %s AND version = 1 RETURNING lane, seq",
        (forged_ms, instance.instance_id),
    )
    place = await forgery.fetchone()
    # The log no longer fits the state of the instance that the API has cached.
    await owner_conn.execute("UPDATE event SET digest = sha256(digest) WHERE stream_id = %s", (instance.instance_id,))

    with capture_logs() as lines:
        changed, deleted = (
            await instance.ask("POST", "/config", {"agent_name": "Eva"}),
            await instance.ask("DELETE", ""),
        )

    for answer in (changed, deleted):
        assert (answer.status_code, answer.json()) == (500, {"detail": "The history of this instance cannot be read"})
    assert [(line["event"], line["log_level"]) for line in lines] == [("request_failed", "error")] * 2
    assert {(line["lane"], line["seq"]) for line in lines} == {place}
    assert f"stream {instance.instance_id} has a time that is out of range" in str(lines[0]["exc_info"])


async def test_audit_show_prints_the_same_events_as_the_api(instance: RunningInstance) -> None:
    await make_personal(instance)
    env = {"HYDRACORE_DATABASE_URL": instance.api.parts.settings.database_url}
    words = ["audit", "show", str(instance.instance_id), "--json"]

    result = await asyncio.to_thread(CliRunner().invoke, main, words, env=env)

    assert [json.loads(line) for line in result.stdout.splitlines()] == await everything(
        instance, headers=instance.api.token(user="boss", role="admin")
    )


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("?version=1000", "it has no version 1000 yet"),
        ("/events?cursor=1000", "it has no version 1000 yet"),
        ("?at=2020-01-01T00:00:00Z", "it did not exist before"),
    ],
)
async def test_a_version_or_time_that_the_instance_did_not_have_is_not_found_with_the_reason(
    instance: RunningInstance, query: str, detail: str
) -> None:
    answer = await instance.ask("GET", query)

    assert answer.status_code == 404
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize("query", ["?version=1", "?version=1000", "?at=2020-01-01", "/events", "/events?cursor=1000"])
async def test_callers_who_may_not_see_an_instance_cannot_see_its_past_either(
    instance: RunningInstance, query: str
) -> None:
    """For every query they are answered as for the present instance."""
    before = await instance.version()

    for who in (
        instance.api.token(user="bob"),
        bearer("rival", "ann"),
        bearer("rival", "boss", "admin"),
        {"Authorization": "x"},
    ):
        past = await instance.ask("GET", query, headers=who)
        present = await instance.ask("GET", "", headers=who)
        assert past.status_code in {401, 403, 404}
        assert (past.status_code, past.content) == (present.status_code, present.content)
    assert await instance.version() == before
