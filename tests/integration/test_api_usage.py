"""Usage from the agent's report to the caller's figures, each call counted once, and budgets that stop chats."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from hydracore import tokens
from projections.follower import Follower
from projections.usage_daily import UsageDaily
from tests import lifecycle
from tests.api_server import MASTER_KEY
from tests.instance_fixtures import (
    KEY_ID,
    RunningInstance,
    events_of,
    execute_commands,
    running_instance,
    shared_api_fixture,
    shared_instance_fixture,
    shared_owner_conn_fixture,
)

__all__ = ["shared_api_fixture", "shared_instance_fixture", "shared_owner_conn_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY_MS = 86_400_000


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "at_ms": now_ms(),
        "model": "gpt-4.1-mini",
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "cost_usd": "0.000072",
        "end_user": "ann",
        "channel": "api",
        "conversation_id": "c-1",
    } | changes


def batch(seq: int, *entries: dict[str, Any], ledger: Any = None) -> dict[str, Any]:
    return {"boot_id": str(uuid4()), "ledger_id": str(ledger or LEDGER), "seq": seq, "entries": list(entries)}


LEDGER = uuid4()


async def follow(instance: RunningInstance) -> None:
    """Bring the usage tables up to the log, as the relay does."""
    follower = Follower(instance.api.parts.pool, UsageDaily())
    await follower.create_checkpoints()
    await follower.catch_up()


async def usage(instance: RunningInstance, query: str = "") -> dict[str, Any]:
    answer = await instance.ask("GET", f"/usage{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_reported_usage_is_summed_up_by_day(instance: RunningInstance) -> None:
    yesterday = now_ms() - DAY_MS
    first = await instance.agent_post("usage", batch(1, entry(), entry(end_user="tg:1", channel="telegram")))
    earlier = (entry(at_ms=yesterday, end_user=None, cost_usd="0.1"), entry(at_ms=yesterday))
    second = await instance.agent_post("usage", batch(2, *earlier))
    await follow(instance)

    report = await usage(instance, "?days=3")

    assert (first.json(), second.json()) == ({"seq": 1, "duplicate": False}, {"seq": 2, "duplicate": False})
    today = datetime.now(UTC).date()
    assert [day["date"] for day in report["daily"]] == [
        (today - timedelta(days=back)).isoformat() for back in (2, 1, 0)
    ]
    assert report["daily"][0] == {
        "date": (today - timedelta(days=2)).isoformat(),
        "requests": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "cost_usd": "0",
    }
    assert (report["daily"][2]["requests"], report["daily"][2]["cost_usd"]) == (2, "0.000144")
    assert {name: report[name] for name in report if name != "daily"} == {
        "hostname": f"hc-{instance.instance_id.hex[:8]}",
        "instance_id": str(instance.instance_id),
        "total_cost_usd": "0.100216",
        "total_requests": 4,
        "total_tokens": 480,
        "unique_end_users": 2,
    }


async def test_a_cost_can_be_a_number_and_is_recorded_as_a_plain_decimal(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    costs = (0.5, 1, 0.1, 1e-9, 0.30000000000000004, -0.0)

    accepted = await instance.agent_post("usage", batch(1, *(entry(cost_usd=cost) for cost in costs)))

    assert accepted.json() == {"seq": 1, "duplicate": False}
    (recorded,) = await events_of(owner_conn, instance.instance_id, "usage_recorded")
    assert [each["cost_usd"] for each in recorded["entries"]] == ["0.5", "1", "0.1", "0.000000001", "0.3", "0"]


async def test_a_repeated_batch_of_usage_counts_once(instance: RunningInstance) -> None:
    answers = [await instance.agent_post("usage", batch(1, entry())) for _ in range(3)]
    another_ledger = await instance.agent_post("usage", batch(1, entry(), ledger=uuid4()))
    await follow(instance)

    assert [answer.json()["duplicate"] for answer in answers] == [False, True, True]
    assert another_ledger.json() == {"seq": 1, "duplicate": False}
    assert (await usage(instance))["total_requests"] == 2


async def test_usage_is_accepted_until_the_drain_ends_and_only_with_the_key_in_force(instance: RunningInstance) -> None:
    rotated, in_force = KEY_ID, UUID(int=0xC2)
    key = tokens.agent_key(MASTER_KEY, instance.instance_id, in_force)
    await execute_commands(
        instance.api,
        instance.instance_id,
        lifecycle.rotate_key(),
        lifecycle.issue(in_force, key_hash=tokens.hash_token(key).hex()),
    )
    await execute_commands(instance.api, instance.instance_id, lifecycle.delete())

    before_the_first_step = await instance.agent_post("usage", batch(1, entry()), key_id=in_force)
    await execute_commands(instance.api, instance.instance_id, lifecycle.teardown("key_revoked"))
    draining = [
        await instance.agent_post("usage", batch(2, entry()), key_id=in_force),
        await instance.agent_post("usage", batch(3, entry()), key_id=rotated),
        await instance.agent_post("usage", batch(3, entry()), key_id=uuid4()),
        await instance.agent_post("config", {"boot_id": str(uuid4()), "config_version": 1}, key_id=in_force),
    ]
    await execute_commands(instance.api, instance.instance_id, lifecycle.teardown("drained"))
    drained = [await instance.agent_post("usage", batch(3, entry()), key_id=each) for each in (in_force, rotated)]
    await follow(instance)

    assert before_the_first_step.status_code == 200
    # An agent whose key was rotated has to get itself another; one of an earlier attempt learns at once that it is over.
    assert [answer.status_code for answer in draining] == [200, 401, 410, 503]
    assert draining[3].headers["retry-after"] == "2"
    assert [answer.status_code for answer in drained] == [410, 410]
    assert (await usage(instance))["total_requests"] == 2


async def test_a_batch_of_usage_may_exceed_the_size_limit_of_other_bodies(instance: RunningInstance) -> None:
    long = entry(model="\N{GRINNING FACE}" * 200, end_user="\N{GRINNING FACE}" * 256, conversation_id="c" * 128)

    answer = await instance.agent_post("usage", batch(1, *[long] * 100))
    await follow(instance)

    assert answer.json() == {"seq": 1, "duplicate": False}
    assert int(answer.request.headers["content-length"]) > instance.api.parts.settings.body_max_bytes
    assert (await usage(instance))["total_requests"] == 100


async def test_a_gap_in_batches_is_refused_with_the_expected_number(instance: RunningInstance) -> None:
    await instance.agent_post("usage", batch(1, entry()))

    gap = await instance.agent_post("usage", batch(3, entry()))

    assert gap.status_code == 409
    assert gap.json() == {"detail": "Expected number 2 first", "expected_seq": 2}


async def test_end_users_are_logged_as_digests_that_differ_between_instances(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    await instance.agent_post("usage", batch(1, entry(end_user="ann@example.com"), entry(end_user="ann@example.com")))

    async with running_instance(instance.api, reachable=False) as another:
        await another.agent_post("usage", batch(1, entry(end_user="ann@example.com")))

    (event,) = await events_of(owner_conn, instance.instance_id, "usage_recorded")
    (elsewhere,) = await events_of(owner_conn, another.instance_id, "usage_recorded")

    first, second = (each["end_user"] for each in event["entries"])
    assert first == second != elsewhere["entries"][0]["end_user"]
    assert len(first) == 32
    assert int(first, 16)
    assert "conversation_id" not in event["entries"][0]


async def test_costs_are_recorded_to_12_decimal_places_without_exponents(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    costs = ("1E-7", "0", "0.1234567890123", "1.500")

    await instance.agent_post("usage", batch(1, *(entry(cost_usd=cost) for cost in costs)))

    (event,) = await events_of(owner_conn, instance.instance_id, "usage_recorded")
    assert [each["cost_usd"] for each in event["entries"]] == ["0.0000001", "0", "0.123456789012", "1.5"]


async def test_impossible_figures_are_clamped_and_block_nothing(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    odd = [
        entry(at_ms=-1, prompt_tokens=-5, cost_usd="-1"),
        entry(at_ms=2**70, completion_tokens=2**70, cost_usd="1e400000"),
        entry(cost_usd="1e-400000"),
    ]

    answers = [await instance.agent_post("usage", batch(seq, *odd)) for seq in (1, 2, 3)]
    await follow(instance)

    assert [answer.status_code for answer in answers] == [200] * 3
    first, second, third = (await events_of(owner_conn, instance.instance_id, "usage_recorded"))[0]["entries"]
    assert (first["at_ms"], first["prompt_tokens"], first["cost_usd"]) == (0, 0, "0")
    assert (second["completion_tokens"], second["cost_usd"]) == (10**9, "1000000")
    assert third["cost_usd"] == "0"
    assert (await usage(instance))["total_cost_usd"] == "3000000"


async def test_usage_dated_in_the_future_counts_for_today(instance: RunningInstance) -> None:
    await instance.agent_post("usage", batch(1, entry(at_ms=now_ms() + 40 * DAY_MS)))
    await follow(instance)

    assert (await usage(instance, "?days=1"))["total_requests"] == 1


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"at_ms": "yesterday"}, "at_ms"),
        ({"prompt_tokens": None}, "prompt_tokens"),
        ({"cost_usd": "NaN"}, "cost_usd"),
        ({"cost_usd": True}, "cost_usd"),
        ({"channel": "a b"}, "channel"),
        ({"model": "x" * 201}, "model"),
        ({"end_user": "x" * 257}, "end_user"),
        ({"end_user": "a\0"}, "end_user"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_malformed_usage_is_refused_and_writes_nothing(
    instance: RunningInstance, changes: dict[str, Any], where: str
) -> None:
    version = await instance.version()

    answer = await instance.agent_post("usage", batch(1, entry(), entry(**changes)))

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "entries", 1, where]
    assert await instance.version() == version


async def test_a_batch_has_one_to_a_hundred_entries(instance: RunningInstance) -> None:
    statuses = [
        (await instance.agent_post("usage", batch(1, *([entry()] * count)))).status_code for count in (0, 101, 100)
    ]

    assert statuses == [422, 422, 200]


async def test_only_the_agent_can_report_usage_and_read_its_configuration(instance: RunningInstance) -> None:
    config = {"boot_id": str(lifecycle.BOOT), "config_version": None}
    for path, body in (("usage", batch(1, entry())), ("config", config)):
        wrong = await instance.agent_post(path, body, key_id=uuid4())
        user = await instance.api.client.post(f"/v1/agent/{path}", json=body, headers=instance.api.token())
        assert (wrong.status_code, user.status_code) == (401, 401)

    assert (await instance.agent_post("config", config)).status_code == 200


@pytest.mark.parametrize("days", ["1", "366"])
async def test_a_report_covers_the_requested_number_of_days(instance: RunningInstance, days: str) -> None:
    report = await usage(instance, f"?days={days}")

    assert len(report["daily"]) == int(days)
    assert report["total_cost_usd"] == "0"


async def test_a_report_covers_30_days_by_default(instance: RunningInstance) -> None:
    assert len((await usage(instance))["daily"]) == 30


@pytest.mark.parametrize("days", ["0", "-1", "367", "1.5", "many", ""])
async def test_an_invalid_number_of_days_is_refused(instance: RunningInstance, days: str) -> None:
    answer = await instance.ask("GET", f"/usage?days={days}")

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "days"]


async def test_staff_may_read_usage_and_other_customers_and_tenants_may_not(instance: RunningInstance) -> None:
    api = instance.api
    statuses = [
        (await instance.ask("GET", "/usage", headers=headers)).status_code
        for headers in (api.token(user="root", role="admin"), api.token(user="bob"), api.token(tenant="rival"))
    ]

    assert statuses == [200, 403, 404]


@pytest.mark.parametrize("budget", ["budget_daily_usd", "budget_monthly_usd"])
async def test_a_spent_budget_refuses_chats_until_it_is_raised(instance: RunningInstance, budget: str) -> None:
    hello = {"message": "Hello"}
    await instance.ask("PATCH", "/model-policy", {budget: 0.1})
    await instance.agent_post("usage", batch(1, entry(cost_usd="0.0999")))
    await follow(instance)
    below = await instance.ask("POST", "/chat", hello)
    await instance.agent_post("usage", batch(2, entry(cost_usd="0.0001")))
    await follow(instance)

    spent = await instance.ask("POST", "/chat", hello)
    await instance.ask("PATCH", "/model-policy", {budget: 0.2})
    raised = await instance.ask("POST", "/chat", hello)

    assert (below.status_code, spent.status_code, raised.status_code) == (200, 402, 200)
    assert "spent" in spent.json()["detail"]
    assert len(instance.agent.calls_of("/api/chat")) == 2


async def test_the_agent_gets_what_is_spent_with_its_configuration(instance: RunningInstance) -> None:
    await instance.agent_post("usage", batch(1, entry(cost_usd="0.25")))
    await follow(instance)

    await instance.ask("POST", "/config", {"agent_name": "Ada"})

    today = datetime.now(UTC).date()
    assert instance.agent.runtime["spent"] == {
        "day": today.isoformat(),
        "daily_usd": "0.25",
        "month": f"{today:%Y-%m}",
        "monthly_usd": "0.25",
    }


async def test_a_chat_with_an_idempotency_key_reaches_the_agent_even_if_the_budget_is_spent(
    instance: RunningInstance,
) -> None:
    await instance.ask("PATCH", "/model-policy", {"budget_daily_usd": 0})

    answer = await instance.ask("POST", "/chat", {"message": "Hello"}, headers={"Idempotency-Key": "again"})

    assert answer.status_code == 200
