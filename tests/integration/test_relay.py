"""The relay as a process: its hints, what its death costs, and its alarms. It never skips a gap."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import psycopg
import pytest
import redis
from redis.asyncio import Redis
from structlog.testing import capture_logs

from events.ids import lane_of
from hydracore.db.pool import open_pool
from hydracore.embedded.ports import free_port
from tests import lifecycle
from tests.locked_lanes import LaneCustomers
from tests.stack import Stack
from tests.store_commands import open_store
from tests.waiting import until
from workers import head_watcher, relay
from workers.broker import QUEUE, HintSender
from workers.clock_skew import watch_clock_skew
from workers.relay import FOLLOWER

IDS = f"hydracore:{QUEUE}"

BEHIND = "SELECT c.lane FROM checkpoint c JOIN lane_head h USING (lane) WHERE c.follower = %s AND c.seq < h.head"


@pytest.fixture
async def quiet(tmp_path: Path, database_url: str, redis_url: str) -> AsyncGenerator[Stack]:
    """A stack of an API alone, on a database of its own. No worker takes hints."""
    stack = Stack(tmp_path, database_url=database_url, redis_url=redis_url)
    stack.api.start()
    yield stack
    stack.close()


def hints(stack: Stack) -> int:
    """How many wait in the queue."""
    with redis.Redis.from_url(stack.redis_url) as client:
        return int(client.llen(IDS))


async def test_events_appended_while_no_relay_runs_are_not_missed(quiet: Stack) -> None:
    for _ in range(3):
        await quiet.create()

    quiet.relay.start()
    await until(lambda: hints(quiet) >= 3)
    await until(lambda: not quiet.rows(BEHIND, FOLLOWER))

    quiet.relay.kill()
    await quiet.create()
    assert quiet.rows(BEHIND, FOLLOWER)
    quiet.relay.start()
    await until(lambda: not quiet.rows(BEHIND, FOLLOWER))


async def test_lost_hints_are_sent_again_while_work_is_due(quiet: Stack) -> None:
    await quiet.create()
    quiet.relay.start()
    await until(lambda: hints(quiet))

    for _ in range(2):
        with redis.Redis.from_url(quiet.redis_url) as client:
            client.flushdb()
        await until(lambda: hints(quiet))


async def test_failures_recorded_for_instances_that_need_no_more_work_are_removed(quiet: Stack) -> None:
    settled, due = await quiet.create(), await quiet.create()
    async with quiet.deps() as deps:
        for instance_id in (settled, due):
            await deps.schedule.record_failure(instance_id, version=1, code="no_placement", delay_s=60)
        # The worker that took this step was killed before it removed its record of the failure.
        await deps.store.execute(settled, lifecycle.gave_up(), deps.origin(settled))

    quiet.relay.start()

    await until(lambda: quiet.rows("SELECT instance_id FROM attention") == [(due,)])


async def test_a_lane_with_a_gap_is_parked_with_an_alarm_and_other_lanes_continue(quiet: Stack) -> None:
    gapped, cut, whole = await create_apart(quiet, 3)
    quiet.rows("UPDATE event SET seq = seq + 1 WHERE lane = %s RETURNING 1", gapped)
    quiet.rows("UPDATE command SET first_seq = first_seq + 1 WHERE lane = %s RETURNING 1", gapped)
    quiet.rows("DELETE FROM event WHERE lane = %s RETURNING 1", cut)

    quiet.relay.start()

    await until(lambda: quiet.relay.has_logged("log_corrupted"))
    await until(lambda: (whole,) not in quiet.rows(BEHIND, FOLLOWER))
    parked = quiet.rows(
        "SELECT lane, seq, error FROM checkpoint WHERE parked_until > now() AND follower = %s", FOLLOWER
    )
    assert {(lane, seq) for lane, seq, _ in parked} == {(gapped, 0), (cut, 0)}
    assert all(error for _, _, error in parked)
    assert quiet.relay.is_alive


async def test_a_lane_with_a_gap_is_parked_while_redis_is_away(quiet: Stack) -> None:
    gapped, whole = await create_apart(quiet, 2)
    quiet.rows("DELETE FROM event WHERE lane = %s RETURNING 1", gapped)

    quiet.relay.start(redis_url=f"redis://127.0.0.1:{free_port()}/0")
    await until(lambda: quiet.relay.output().count("relay_waits") > 1)

    parked = "SELECT lane FROM checkpoint WHERE parked_until > now() AND follower = %s"
    assert quiet.rows(parked, FOLLOWER) == [(gapped,)]
    alarms = [line for line in quiet.relay.output().splitlines() if "log_corrupted" in line and '"after":0' in line]
    assert len(alarms) == 1, "the followers of projections raise their own"
    assert set(quiet.rows(BEHIND, FOLLOWER)) == {(gapped,), (whole,)}


async def test_a_lane_that_is_far_behind_is_followed_page_by_page(
    database_url: str, redis_url: str, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "LANE_BATCH_MAX", 2)
    monkeypatch.setattr(
        relay,
        "LEASE_NEW_EVENTS",
        relay.LEASE_NEW_EVENTS._replace(parameters=(*relay.LEASE_NEW_EVENTS.parameters[:-1], b"2")),
    )
    monkeypatch.setattr(head_watcher, "WAIT_S_MAX", 3_600)

    async def caught_up() -> bool:
        return (await owner_conn.execute(BEHIND, (FOLLOWER,))).rowcount == 0

    async with open_store(database_url) as (store, pool), Redis.from_url(redis_url) as listening:
        customers = LaneCustomers()
        asked = [await customers.create(store, 1) for _ in range(5)]
        await owner_conn.execute("INSERT INTO checkpoint (follower, lane) SELECT %s, lane FROM lane_head", (FOLLOWER,))
        assert not await caught_up()
        sender = HintSender(redis_url)
        following = asyncio.create_task(relay.Relay(pool, sender, head_watcher.HeadWatcher(pool, listening)).run())

        await until(caught_up)

        following.cancel()
        await asyncio.wait([following])
        sender.close()
        messages: list[bytes] = await listening.hvals(f"{IDS}.msgs")  # type: ignore[misc]
    hinted = [instance_id for message in messages for instance_id in json.loads(message)["args"]]
    assert sorted(hinted) == sorted(str(outcome.state.id) for outcome in asked), "no instance is skipped"


async def test_a_query_that_the_database_refuses_ends_no_part_of_a_relay(
    quiet: Stack, owner_conn: psycopg.AsyncConnection
) -> None:
    await owner_conn.execute("ALTER TABLE lane_head RENAME TO heads_away; ALTER TABLE duty RENAME TO duty_away")

    quiet.relay.start()
    for part in ("relay", "head_watcher", "reconciler", "lane_times"):
        await until(lambda part=part: quiet.relay.has_logged(f"{part}_failed"))
    assert "UndefinedTable" in quiet.relay.output()
    await owner_conn.execute("ALTER TABLE heads_away RENAME TO lane_head; ALTER TABLE duty_away RENAME TO duty")
    await quiet.create()

    await until(lambda: hints(quiet))
    await until(lambda: quiet.rows("SELECT 1 FROM checkpoint WHERE follower = %s AND seq > 0", FOLLOWER))
    await until(lambda: not quiet.rows(BEHIND, FOLLOWER))
    assert quiet.relay.is_alive


async def test_a_lane_whose_time_is_ahead_of_the_clock_is_an_alarm(quiet: Stack) -> None:
    far, near, right = await create_apart(quiet, 3)
    ahead = "UPDATE command SET recorded_at = clock_timestamp() + %s * interval '1 s' WHERE lane = %s RETURNING 1"
    quiet.rows(ahead, 86_400, far)
    quiet.rows(ahead, 3_600, near)
    quiet.rows(ahead, 1, right)

    quiet.relay.start()

    await until(lambda: quiet.relay.has_logged("lane_of_the_future"))
    (alarm,) = [json.loads(line) for line in quiet.relay.output().splitlines() if "lane_of_the_future" in line]
    assert (alarm["level"], alarm["lane"], alarm["lanes"]) == ("error", far, 2)
    assert 86_000 < alarm["ahead_s"] <= 86_400


async def test_a_lane_whose_time_is_infinity_is_an_alarm(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await LaneCustomers().create(store, 6)
    await owner_conn.execute("UPDATE command SET recorded_at = 'infinity'")

    async with open_pool(database_url, role="hydracore_app", application="test", size=1) as pool:
        with capture_logs() as said:
            watching = asyncio.create_task(watch_clock_skew(pool))
            await until(lambda: said)
            watching.cancel()

    assert [(line["event"], line["lane"]) for line in said] == [("lane_of_the_future", 6)]


async def test_lanes_with_a_correct_time_are_checked_only_at_intervals(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    looked = (
        "SELECT query_start FROM pg_stat_activity"
        " WHERE application_name = 'lane-times' AND query LIKE '%clock_timestamp%' AND state = 'idle'"
    )

    async def looks() -> list[tuple[object]]:
        return await (await owner_conn.execute(looked)).fetchall()

    async with open_pool(database_url, role="hydracore_app", application="lane-times", size=1) as pool:
        watching = asyncio.create_task(watch_clock_skew(pool))
        await until(looks)

        # Each of these queries leaves time for another check.
        begun = {start for _ in range(20) for start in await looks()}

        watching.cancel()
    assert len(begun) <= 2, "to prepare the statement, and to ask"


async def create_apart(stack: Stack, count: int) -> list[int]:
    """Instances in as many lanes; the lanes."""
    lanes: dict[int, str] = {}
    while len(lanes) < count:
        key, instance_id = stack.new_key()
        lanes.setdefault(lane_of(instance_id), key)
    for key in lanes.values():
        await stack.create(key)
    return list(lanes)
