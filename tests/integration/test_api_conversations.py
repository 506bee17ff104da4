"""Conversations over HTTP: only the owner reads them unless the owner consents, and each read by staff is in the log."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from hydracore.api.consent import logged_conversation_id
from tests.api_server import Api
from tests.instance_fixtures import (
    RunningInstance,
    events_of,
    request_instance,
    running_instance,
    shared_api_fixture,
    shared_instance_fixture,
    shared_owner_conn_fixture,
    shared_unreachable_fixture,
)
from tests.waiting import until

__all__ = ["shared_api_fixture", "shared_instance_fixture", "shared_owner_conn_fixture", "shared_unreachable_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONSENT = {"consent_debug_access": True}
NO_CONSENT = {"consent_debug_access": False}
PATHS = ("/conversations", "/conversations/c-1")


def staff(api: Api) -> list[dict[str, str]]:
    """Staff who may look at ann's instance; the platform's has her user id, in another tenant."""
    return [api.token(user="root", role="admin"), api.token(tenant="ours", user="ann", role="platform")]


async def test_the_owner_reads_conversations_and_no_event_is_appended(instance: RunningInstance) -> None:
    version = await instance.version()

    listed, detail = [await instance.ask("GET", path) for path in PATHS]

    assert listed.json() == {"conversations": [{"id": "c-1", "preview": "Hello"}]}
    assert detail.json()["messages"] == [{"role": "user", "content": "Hello"}]
    assert instance.agent.calls_of("/api/conversations")[0].query == "limit=20"
    assert await instance.version() == version


@pytest.mark.parametrize("path", PATHS)
async def test_without_consent_only_the_owner_reads_conversations(instance: RunningInstance, path: str) -> None:
    version = await instance.version()

    answers = [await instance.ask("GET", path, headers=headers) for headers in staff(instance.api)]
    answers += [await instance.ask("GET", path, headers=instance.api.token(user="bob"))]
    strangers = await instance.ask("GET", path, headers=instance.api.token(tenant="rival", role="admin"))

    assert [answer.status_code for answer in answers] == [403] * 3
    assert strangers.status_code == 404
    assert instance.agent.calls == []
    assert await instance.version() == version


async def test_with_consent_staff_reads_conversations_and_each_read_is_an_event(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    await instance.ask("PATCH", "/consent", CONSENT)

    answers = [await instance.ask("GET", path, headers=headers) for headers in staff(instance.api) for path in PATHS]
    customer = await instance.ask("GET", PATHS[0], headers=instance.api.token(user="bob"))

    assert [answer.status_code for answer in answers] == [200] * 4
    assert customer.status_code == 403
    events = await events_of(owner_conn, instance.instance_id, "conversations_accessed")
    assert [event.get("conversation_id") for event in events] == [None, "c-1", None, "c-1"]
    rows = await owner_conn.execute(
        "SELECT actor FROM command WHERE name = 'RecordConversationsAccess' ORDER BY first_seq"
    )
    assert [row[0] for row in await rows.fetchall()] == ["admin:root"] * 2 + ["platform:ann"] * 2


async def test_telegram_numbers_in_conversation_ids_are_pseudonymized_in_the_log(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    numbers = ("498231177", "-1001498231177")
    admin = staff(instance.api)[0]
    await instance.ask("PATCH", "/consent", CONSENT)
    for number in numbers:
        instance.agent.script(f"/api/conversations/telegram%3A{number}", 200, {"messages": []})

    answers = [await instance.ask("GET", f"/conversations/telegram:{number}", headers=admin) for number in numbers]
    joined = {"message": "Hello", "conversation_id": f"telegram:{numbers[0]}"}
    answers += [await instance.ask("POST", "/chat", joined, headers=admin)]

    assert [answer.status_code for answer in answers] == [200] * 3
    assert instance.agent.calls[-1].body["conversation_id"] == f"telegram:{numbers[0]}"
    events = await events_of(owner_conn, instance.instance_id, "conversations_accessed")
    first, other, again = [event["conversation_id"] for event in events]
    assert first == again != other
    assert logged_conversation_id(instance.api.parts.keyring, UUID(int=7), f"telegram:{numbers[0]}") != first, (
        "at another instance"
    )
    rows = await owner_conn.execute(
        "SELECT payload::text FROM event WHERE stream_id = %(id)s"
        " UNION ALL SELECT message FROM provision_log WHERE instance_id = %(id)s",
        {"id": instance.instance_id},
    )
    kept = "\n".join(row[0] for row in await rows.fetchall())
    assert "Staff read conversation telegram:" in kept
    assert not any(number in kept for number in numbers)


async def test_a_failed_read_is_not_recorded_as_an_access(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    await instance.ask("PATCH", "/consent", CONSENT)
    instance.agent.script("/api/conversations", 500, {})
    admin = staff(instance.api)[0]

    failed = await instance.ask("GET", "/conversations", headers=admin)
    absent = await instance.ask("GET", "/conversations/unknown", headers=admin)

    assert (failed.status_code, absent.status_code) == (502, 404)
    assert absent.json() == {"detail": "Conversation not found"}
    assert await events_of(owner_conn, instance.instance_id, "conversations_accessed") == []


async def test_consent_withdrawn_while_the_agent_reads_withholds_the_data(instance: RunningInstance) -> None:
    await instance.ask("PATCH", "/consent", CONSENT)
    instance.agent.may_answer.clear()
    reading = asyncio.create_task(instance.ask("GET", "/conversations", headers=staff(instance.api)[0]))
    await until(lambda: instance.agent.calls_of("/api/conversations"))
    await instance.ask("PATCH", "/consent", NO_CONSENT)
    instance.agent.may_answer.set()

    assert (await reading).status_code == 403


async def test_reads_beyond_the_limit_of_one_agent_get_503_and_other_agents_are_unaffected(
    instance: RunningInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.api.conversations.READS_MAX", 2)
    instance.agent.may_answer.clear()
    reading = [asyncio.create_task(instance.ask("GET", path)) for path in PATHS]
    await until(lambda: len(instance.agent.calls) == len(reading))

    refused = [await instance.ask("GET", path) for path in PATHS]
    async with running_instance(instance.api) as other:
        others = [await other.ask("GET", path) for path in PATHS]
    instance.agent.may_answer.set()

    assert [(answer.status_code, "retry-after" in answer.headers) for answer in refused] == [(503, True)] * 2
    assert [answer.status_code for answer in others] == [200, 200]
    assert [(await each).status_code for each in reading] == [200, 200]
    assert [(await instance.ask("GET", path)).status_code for path in PATHS] == [200, 200]


async def test_only_the_owner_can_give_or_withdraw_consent(instance: RunningInstance) -> None:
    version = await instance.version()

    refused = [await instance.ask("PATCH", "/consent", CONSENT, headers=headers) for headers in staff(instance.api)]
    refused += [await instance.ask("PATCH", "/consent", CONSENT, headers=instance.api.token(user="bob"))]
    assert [answer.status_code for answer in refused] == [403] * 3
    assert await instance.version() == version
    granted = await instance.ask("PATCH", "/consent", CONSENT)
    again = await instance.ask("PATCH", "/consent", CONSENT)
    withdrawn = await instance.ask("PATCH", "/consent", NO_CONSENT)

    assert granted.json() == again.json()
    assert granted.json()["consent_debug_access"] is True
    assert granted.json()["instance_id"] == str(instance.instance_id)
    assert withdrawn.json()["consent_debug_access"] is False
    assert await instance.version() == version + 2


async def test_consent_can_be_given_before_the_instance_runs(api: Api) -> None:
    instance_id = await request_instance(api)

    answer = await api.client.patch(f"/v1/instances/{instance_id}/consent", json=CONSENT, headers=api.token())

    assert answer.status_code == 200


@pytest.mark.parametrize("body", [{}, {"consent_debug_access": None}, {"consent_debug_access": "perhaps"}], ids=str)
async def test_consent_that_is_not_a_boolean_is_refused(instance: RunningInstance, body: Any) -> None:
    answer = await instance.ask("PATCH", "/consent", body)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "consent_debug_access"]


@pytest.mark.parametrize(
    "conversation_id",
    ["..%2f..%2fconfig", "%2e%2e", "a%0a", "a%00", "a.b", "a%20b", "ä", "x" * 129, "c-1%3flimit=1", "c-1%23"],
)
async def test_invalid_conversation_ids_never_reach_the_agent(instance: RunningInstance, conversation_id: str) -> None:
    answer = await instance.ask("GET", f"/conversations/{conversation_id}")

    assert answer.status_code in {404, 422}
    assert instance.agent.calls == []


async def test_a_conversation_id_with_all_allowed_characters_reaches_the_agent_unchanged(
    instance: RunningInstance,
) -> None:
    await instance.ask("GET", "/conversations/staff:0aF:_-1")

    assert [call.path for call in instance.agent.calls] in (
        ["/api/conversations/staff:0aF:_-1"],
        ["/api/conversations/staff%3A0aF%3A_-1"],
    )


@pytest.mark.parametrize(("limit", "status"), [("1", 200), ("100", 200), ("0", 422), ("101", 422), ("many", 422)])
async def test_a_limit_outside_1_to_100_is_refused(instance: RunningInstance, limit: str, status: int) -> None:
    answer = await instance.ask("GET", f"/conversations?limit={limit}")

    assert answer.status_code == status


async def test_conversations_of_a_pending_unreachable_or_unknown_instance_are_an_error(
    api: Api, unreachable: RunningInstance
) -> None:
    instance_id = await request_instance(api, user="ann")
    pending = await api.client.get(f"/v1/instances/{instance_id}/conversations", headers=api.token())
    away = [await unreachable.ask("GET", path) for path in PATHS]
    unknown = await api.client.get(f"/v1/instances/{uuid4()}/conversations", headers=api.token())

    assert pending.status_code == 409
    assert [answer.status_code for answer in away] == [502, 502]
    assert unknown.status_code == 404
