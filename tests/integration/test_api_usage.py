"""Usage from the agent's report to the caller's figures, each call counted once, and budgets that stop chats."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from hydracore import tokens
from projections.follower import Follower
from projections.usage_daily import UsageDaily
from tests import lives
from tests.api_server import MASTER_KEY
from tests.use_fixtures import (
    KEY_ID,
    Used,
    events_of,
    give,
    in_use,
    shared_api_fixture,
    shared_owner_conn_fixture,
    shared_used_fixture,
)

__all__ = ["shared_api_fixture", "shared_owner_conn_fixture", "shared_used_fixture"]

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


async def follow(used: Used) -> None:
    """Bring the usage tables up to the log, as the relay does."""
    follower = Follower(used.api.parts.pool, UsageDaily())
    await follower.create_checkpoints()
    await follower.catch_up()


async def usage(used: Used, query: str = "") -> dict[str, Any]:
    answer = await used.ask("GET", f"/usage{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_reported_usage_is_summed_up_by_day(used: Used) -> None:
    yesterday = now_ms() - DAY_MS
    first = await used.agent_says("usage", batch(1, entry(), entry(end_user="tg:1", channel="telegram")))
    earlier = (entry(at_ms=yesterday, end_user=None, cost_usd="0.1"), entry(at_ms=yesterday))
    second = await used.agent_says("usage", batch(2, *earlier))
    await follow(used)

    report = await usage(used, "?days=3")

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
        "hostname": f"hc-{used.instance_id.hex[:8]}",
        "instance_id": str(used.instance_id),
        "total_cost_usd": "0.100216",
        "total_requests": 4,
        "total_tokens": 480,
        "unique_end_users": 2,
    }


async def test_a_cost_can_be_a_number_and_is_recorded_as_a_plain_decimal(
    used: Used, owner_conn: psycopg.AsyncConnection
) -> None:
    costs = (0.5, 1, 0.1, 1e-9, 0.30000000000000004, -0.0)

    accepted = await used.agent_says("usage", batch(1, *(entry(cost_usd=cost) for cost in costs)))

    assert accepted.json() == {"seq": 1, "duplicate": False}
    (recorded,) = await events_of(owner_conn, used.instance_id, "usage_recorded")
    assert [each["cost_usd"] for each in recorded["entries"]] == ["0.5", "1", "0.1", "0.000000001", "0.3", "0"]


async def test_a_repeated_batch_of_usage_counts_once(used: Used) -> None:
    answers = [await used.agent_says("usage", batch(1, entry())) for _ in range(3)]
    another_ledger = await used.agent_says("usage", batch(1, entry(), ledger=uuid4()))
    await follow(used)

    assert [answer.json()["duplicate"] for answer in answers] == [False, True, True]
    assert another_ledger.json() == {"seq": 1, "duplicate": False}
    assert (await usage(used))["total_requests"] == 2


async def test_usage_is_accepted_until_the_drain_ends_and_only_with_the_key_in_force(used: Used) -> None:
    rotated, in_force = KEY_ID, UUID(int=0xC2)
    key = tokens.agent_key(MASTER_KEY, used.instance_id, in_force)
    await give(
        used.api, used.instance_id, lives.rotate_key(), lives.issue(in_force, key_hash=tokens.hash_token(key).hex())
    )
    await give(used.api, used.instance_id, lives.delete())

    before_the_first_step = await used.agent_says("usage", batch(1, entry()), key_id=in_force)
    await give(used.api, used.instance_id, lives.teardown("key_revoked"))
    draining = [
        await used.agent_says("usage", batch(2, entry()), key_id=in_force),
        await used.agent_says("usage", batch(3, entry()), key_id=rotated),
        await used.agent_says("usage", batch(3, entry()), key_id=uuid4()),
        await used.agent_says("config", {"boot_id": str(uuid4()), "config_version": 1}, key_id=in_force),
    ]
    await give(used.api, used.instance_id, lives.teardown("drained"))
    drained = [await used.agent_says("usage", batch(3, entry()), key_id=each) for each in (in_force, rotated)]
    await follow(used)

    assert before_the_first_step.status_code == 200
    # An agent whose key was rotated has to get itself another; one of an earlier attempt learns at once that it is over.
    assert [answer.status_code for answer in draining] == [200, 401, 410, 503]
    assert draining[3].headers["retry-after"] == "2"
    assert [answer.status_code for answer in drained] == [410, 410]
    assert (await usage(used))["total_requests"] == 2


async def test_a_batch_of_usage_may_exceed_the_size_limit_of_other_bodies(used: Used) -> None:
    long = entry(model="\N{GRINNING FACE}" * 200, end_user="\N{GRINNING FACE}" * 256, conversation_id="c" * 128)

    answer = await used.agent_says("usage", batch(1, *[long] * 100))
    await follow(used)

    assert answer.json() == {"seq": 1, "duplicate": False}
    assert int(answer.request.headers["content-length"]) > used.api.parts.settings.body_max_bytes
    assert (await usage(used))["total_requests"] == 100


async def test_a_gap_in_batches_is_refused_with_the_expected_number(used: Used) -> None:
    await used.agent_says("usage", batch(1, entry()))

    gap = await used.agent_says("usage", batch(3, entry()))

    assert gap.status_code == 409
    assert gap.json() == {"detail": "Expected number 2 first", "expected_seq": 2}


async def test_end_users_are_logged_as_digests_that_differ_between_instances(
    used: Used, owner_conn: psycopg.AsyncConnection
) -> None:
    await used.agent_says("usage", batch(1, entry(end_user="ann@example.com"), entry(end_user="ann@example.com")))

    async with in_use(used.api, reachable=False) as another:
        await another.agent_says("usage", batch(1, entry(end_user="ann@example.com")))

    (event,) = await events_of(owner_conn, used.instance_id, "usage_recorded")
    (elsewhere,) = await events_of(owner_conn, another.instance_id, "usage_recorded")

    first, second = (each["end_user"] for each in event["entries"])
    assert first == second != elsewhere["entries"][0]["end_user"]
    assert len(first) == 32
    assert int(first, 16)
    assert "conversation_id" not in event["entries"][0]


async def test_costs_are_recorded_to_12_decimal_places_without_exponents(
    used: Used, owner_conn: psycopg.AsyncConnection
) -> None:
    costs = ("1E-7", "0", "0.1234567890123", "1.500")

    await used.agent_says("usage", batch(1, *(entry(cost_usd=cost) for cost in costs)))

    (event,) = await events_of(owner_conn, used.instance_id, "usage_recorded")
    assert [each["cost_usd"] for each in event["entries"]] == ["0.0000001", "0", "0.123456789012", "1.5"]


async def test_impossible_figures_are_clamped_and_block_nothing(
    used: Used, owner_conn: psycopg.AsyncConnection
) -> None:
    odd = [
        entry(at_ms=-1, prompt_tokens=-5, cost_usd="-1"),
        entry(at_ms=2**70, completion_tokens=2**70, cost_usd="1e400000"),
        entry(cost_usd="1e-400000"),
    ]

    answers = [await used.agent_says("usage", batch(seq, *odd)) for seq in (1, 2, 3)]
    await follow(used)

    assert [answer.status_code for answer in answers] == [200] * 3
    first, second, third = (await events_of(owner_conn, used.instance_id, "usage_recorded"))[0]["entries"]
    assert (first["at_ms"], first["prompt_tokens"], first["cost_usd"]) == (0, 0, "0")
    assert (second["completion_tokens"], second["cost_usd"]) == (10**9, "1000000")
    assert third["cost_usd"] == "0"
    assert (await usage(used))["total_cost_usd"] == "3000000"


async def test_usage_dated_in_the_future_counts_for_today(used: Used) -> None:
    await used.agent_says("usage", batch(1, entry(at_ms=now_ms() + 40 * DAY_MS)))
    await follow(used)

    assert (await usage(used, "?days=1"))["total_requests"] == 1


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
async def test_malformed_usage_is_refused_and_writes_nothing(used: Used, changes: dict[str, Any], where: str) -> None:
    version = await used.version()

    answer = await used.agent_says("usage", batch(1, entry(), entry(**changes)))

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "entries", 1, where]
    assert await used.version() == version


async def test_a_batch_has_one_to_a_hundred_entries(used: Used) -> None:
    statuses = [(await used.agent_says("usage", batch(1, *([entry()] * count)))).status_code for count in (0, 101, 100)]

    assert statuses == [422, 422, 200]


async def test_only_the_agent_can_report_usage_and_read_its_configuration(used: Used) -> None:
    config = {"boot_id": str(lives.BOOT), "config_version": None}
    for path, body in (("usage", batch(1, entry())), ("config", config)):
        wrong = await used.agent_says(path, body, key_id=uuid4())
        user = await used.api.client.post(f"/v1/agent/{path}", json=body, headers=used.api.token())
        assert (wrong.status_code, user.status_code) == (401, 401)

    assert (await used.agent_says("config", config)).status_code == 200


@pytest.mark.parametrize("days", ["1", "366"])
async def test_a_report_covers_the_requested_number_of_days(used: Used, days: str) -> None:
    report = await usage(used, f"?days={days}")

    assert len(report["daily"]) == int(days)
    assert report["total_cost_usd"] == "0"


async def test_a_report_covers_30_days_by_default(used: Used) -> None:
    assert len((await usage(used))["daily"]) == 30


@pytest.mark.parametrize("days", ["0", "-1", "367", "1.5", "many", ""])
async def test_an_invalid_number_of_days_is_refused(used: Used, days: str) -> None:
    answer = await used.ask("GET", f"/usage?days={days}")

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "days"]


async def test_staff_may_read_usage_and_other_customers_and_tenants_may_not(used: Used) -> None:
    api = used.api
    statuses = [
        (await used.ask("GET", "/usage", headers=headers)).status_code
        for headers in (api.token(user="root", role="admin"), api.token(user="bob"), api.token(tenant="rival"))
    ]

    assert statuses == [200, 403, 404]


@pytest.mark.parametrize("budget", ["budget_daily_usd", "budget_monthly_usd"])
async def test_a_spent_budget_refuses_chats_until_it_is_raised(used: Used, budget: str) -> None:
    hello = {"message": "Hello"}
    await used.ask("PATCH", "/model-policy", {budget: 0.1})
    await used.agent_says("usage", batch(1, entry(cost_usd="0.0999")))
    await follow(used)
    below = await used.ask("POST", "/chat", hello)
    await used.agent_says("usage", batch(2, entry(cost_usd="0.0001")))
    await follow(used)

    spent = await used.ask("POST", "/chat", hello)
    await used.ask("PATCH", "/model-policy", {budget: 0.2})
    raised = await used.ask("POST", "/chat", hello)

    assert (below.status_code, spent.status_code, raised.status_code) == (200, 402, 200)
    assert "spent" in spent.json()["detail"]
    assert len(used.agent.calls_of("/api/chat")) == 2


async def test_the_agent_gets_what_is_spent_with_its_configuration(used: Used) -> None:
    await used.agent_says("usage", batch(1, entry(cost_usd="0.25")))
    await follow(used)

    await used.ask("POST", "/config", {"agent_name": "Ada"})

    today = datetime.now(UTC).date()
    assert used.agent.runtime["spent"] == {
        "day": today.isoformat(),
        "daily_usd": "0.25",
        "month": f"{today:%Y-%m}",
        "monthly_usd": "0.25",
    }


async def test_a_chat_with_an_idempotency_key_reaches_the_agent_even_if_the_budget_is_spent(used: Used) -> None:
    await used.ask("PATCH", "/model-policy", {"budget_daily_usd": 0})

    answer = await used.ask("POST", "/chat", {"message": "Hello"}, headers={"Idempotency-Key": "again"})

    assert answer.status_code == 200
