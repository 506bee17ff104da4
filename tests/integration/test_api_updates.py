"""Updates: pending ones are applied on request, and the log has the request before and the outcome afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import psycopg
import pytest

from hydracore.api import updates
from tests.api_server import Api
from tests.instance_fixtures import (
    RunningInstance,
    events_of,
    execute_commands,
    request_instance,
    shared_api_fixture,
    shared_instance_fixture,
    shared_owner_conn_fixture,
    shared_unreachable_fixture,
)
from tests.lifecycle import delete
from tests.waiting import until

__all__ = ["shared_api_fixture", "shared_instance_fixture", "shared_owner_conn_fixture", "shared_unreachable_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPDATE_EVENTS = """
    SELECT event.type, event.payload, command.actor, command.command_id, command.causation_id
    FROM event JOIN command USING (lane, command_id)
    WHERE event.stream_id = %s AND event.type LIKE 'updates_%%'
    ORDER BY event.version
"""


class UpdateEvent(NamedTuple):
    """An event about updates, with the actor and the command that appended it, and that command's cause."""

    name: str
    event: dict[str, Any]
    actor: str
    command_id: UUID
    cause: UUID | None


async def update_events(owner_conn: psycopg.AsyncConnection, instance: RunningInstance) -> list[UpdateEvent]:
    return [
        UpdateEvent(*row) for row in await (await owner_conn.execute(UPDATE_EVENTS, (instance.instance_id,))).fetchall()
    ]


@asynccontextmanager
async def asked_for(instance: RunningInstance) -> AsyncGenerator[asyncio.Task[httpx.Response]]:
    """A restart that the agent was asked for; it answers when this context ends."""
    instance.agent.may_answer.clear()
    asking = asyncio.create_task(instance.ask("POST", "/updates/apply", {"force": True, "restart_agent": True}))
    await until(lambda: instance.agent.calls_of("/api/updates/apply"))
    try:
        yield asking
    finally:
        instance.agent.may_answer.set()


async def test_without_pending_updates_the_agent_is_not_asked_and_nothing_is_recorded(
    instance: RunningInstance,
) -> None:
    version = await instance.version()

    answers = [await instance.ask("POST", "/updates/apply", body) for body in ({}, {"restart_agent": True})]

    assert [answer.json()["status"] for answer in answers] == ["up_to_date"] * 2
    assert answers[0].json()["instance_id"] == str(instance.instance_id)
    assert instance.agent.calls_of("/api/updates/apply") == []
    assert await instance.version() == version


async def test_each_of_many_concurrent_updates_is_carried_out_and_recorded_with_its_outcome(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    answers = await asyncio.gather(*(instance.ask("POST", "/updates/apply", {"force": True}) for _ in range(20)))

    assert [answer.status_code for answer in answers] == [200] * 20
    logged = await update_events(owner_conn, instance)
    asked_for = {one.command_id for one in logged if one.name == "updates_requested"}
    applied = [one.cause for one in logged if one.name == "updates_applied"]
    assert (len(asked_for), len(applied)) == (20, 20)
    assert set(applied) == asked_for


@pytest.mark.parametrize("running", [1, None, 7], ids=["older", "none", "of a history that a restore has lost"])
async def test_a_pending_configuration_is_applied_and_recorded(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection, running: int | None
) -> None:
    await instance.ask("POST", "/config", {"system_prompt": "New"})
    instance.agent.config_version, instance.agent.runtime = running, {}

    answer = await instance.ask("POST", "/updates/apply", {"restart_agent": True})

    assert answer.json()["status"] == "applied"
    assert "restarted after its open chats had ended" in answer.json()["message"]
    assert (instance.agent.config_version, instance.agent.restarts) == (2, 1)
    assert instance.agent.runtime["system_prompt"] == "New"
    (event,) = await events_of(owner_conn, instance.instance_id, "updates_applied")
    assert (event["config_version"], event["restarted"], event["forced"]) == (2, True, False)


async def test_force_applies_a_configuration_that_is_applied_already(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    answer = await instance.ask("POST", "/updates/apply", {"force": True})

    assert answer.json()["status"] == "applied"
    assert instance.agent.restarts == 0
    (event,) = await events_of(owner_conn, instance.instance_id, "updates_applied")
    assert (event["restarted"], event["forced"]) == (False, True)


async def test_the_answer_reports_chats_that_a_restart_cut_off_and_an_error_that_is_left(
    instance: RunningInstance,
) -> None:
    error = {"code": "skill_broken", "message": "A skill is broken"}
    cut_off = {"config_version": 1, "restarted": True, "drained": False, "skills_loaded": [], "error": error}
    instance.agent.script("/api/updates/apply", 200, cut_off)

    answer = await instance.ask("POST", "/updates/apply", {"force": True, "restart_agent": True})

    assert "with an error (A skill is broken)" in answer.json()["message"]
    assert "were cut off" in answer.json()["message"]


async def test_an_update_is_logged_with_its_actor_before_the_agent_is_asked(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    async with asked_for(instance) as asking:
        (intent,) = await update_events(owner_conn, instance)
        assert (intent.name, intent.actor) == ("updates_requested", "customer:ann")
        assert (intent.event["config_version"], intent.event["restart"], intent.event["forced"]) == (1, True, True)

    assert (await asking).json()["status"] == "applied"
    _, result = await update_events(owner_conn, instance)
    assert (result.name, result.cause) == ("updates_applied", intent.command_id)


async def test_an_update_that_the_agent_does_not_answer_in_time_is_recorded_as_unknown(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "APPLY_TIMEOUT_S", 0.1)
    instance.agent.may_answer.clear()

    answer = await instance.ask("POST", "/updates/apply", {"force": True, "restart_agent": True})

    assert answer.status_code == 504
    _, result = await update_events(owner_conn, instance)
    assert (result.name, result.event["code"]) == ("updates_failed", "agent_timeout")
    assert "nothing_done" not in result.event
    lines = (await instance.ask("GET", "/logs")).text
    assert "Configuration 1 may or may not have been applied: The agent did not answer in time" in lines


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (500, {}, {"code": "agent_failed"}),
        (200, {"config_version": 1}, {"code": "agent_failed"}),
        (422, {"detail": "no", "code": "bad_request"}, {"code": "agent_refused", "nothing_done": True}),
        (401, {}, {"code": "agent_refused", "nothing_done": True}),
    ],
    ids=["broken", "nonsense", "of no use", "unknown key"],
)
async def test_an_update_that_the_agent_does_not_confirm_is_recorded_with_the_reason(
    instance: RunningInstance,
    owner_conn: psycopg.AsyncConnection,
    status: int,
    body: dict[str, Any],
    why: dict[str, Any],
) -> None:
    instance.agent.script("/api/updates/apply", status, body)

    answer = await instance.ask("POST", "/updates/apply", {"force": True})

    assert answer.status_code == 502
    intent, result = await update_events(owner_conn, instance)
    assert (intent.name, result.name) == ("updates_requested", "updates_failed")
    assert result.event.items() >= why.items()
    assert result.event.keys() - {"type", "at_ms", "config_version"} == why.keys()
    assert result.cause == intent.command_id


async def test_an_update_for_an_unreachable_agent_is_a_502_and_records_nothing(
    unreachable: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    assert (await unreachable.ask("POST", "/updates/apply", {})).status_code == 502
    assert await update_events(owner_conn, unreachable) == []


async def test_each_of_two_concurrent_updates_is_recorded_with_its_own_outcome(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    instance.agent.script("/api/updates/apply", 500, {})
    bodies = ({"force": True, "restart_agent": restart} for restart in (True, False))

    answers = await asyncio.gather(*(instance.ask("POST", "/updates/apply", body) for body in bodies))

    events = await update_events(owner_conn, instance)
    names = {event.cause: event.name for event in events if event.cause is not None}
    restarts = {event.event["restart"]: event.command_id for event in events if event.name == "updates_requested"}
    by_status = {200: "updates_applied", 502: "updates_failed"}
    assert [names[restarts[restart]] for restart in (True, False)] == [by_status[one.status_code] for one in answers]
    assert len(events) == 4


async def test_the_outcome_of_an_update_is_recorded_even_if_a_deletion_began_meanwhile(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    async with asked_for(instance) as asking:
        await execute_commands(instance.api, instance.instance_id, delete())

    assert (await asking).json()["status"] == "applied"
    assert [one.name for one in await update_events(owner_conn, instance)] == ["updates_requested", "updates_applied"]


async def test_updates_are_refused_for_pending_instances_and_for_other_customers(
    api: Api, instance: RunningInstance
) -> None:
    pending = await request_instance(api)

    early = await api.client.post(f"/v1/instances/{pending}/updates/apply", json={}, headers=api.token())
    other = await instance.ask("POST", "/updates/apply", {"force": True}, headers=api.token(user="bob"))
    invalid = await instance.ask("POST", "/updates/apply", {"force": "perhaps"})

    assert (early.status_code, other.status_code, invalid.status_code) == (409, 403, 422)


@pytest.mark.parametrize("version", [2**53 + 1, -1, 1.5])
async def test_an_impossible_configuration_version_is_not_recorded(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection, version: float
) -> None:
    applied = {"config_version": version, "restarted": True, "drained": True, "skills_loaded": []}
    instance.agent.script("/api/updates/apply", 200, applied)

    answer = await instance.ask("POST", "/updates/apply", {"force": True})

    assert answer.status_code == 502
    assert await events_of(owner_conn, instance.instance_id, "updates_applied") == []
