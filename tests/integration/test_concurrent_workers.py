"""Several relays and workers at once, and job messages that are doubled, late, lost or invalid: none of it does harm."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
import redis

from tests import lifecycle
from tests.lost_locks import END_LOCK_SESSIONS, record_now
from tests.orphan_servers import record_instance
from tests.stack import Stack
from workers.action_polling import poll_actions
from workers.actors import POLLS_MAX, SWEEPS_MAX
from workers.advance import advance
from workers.broker import ADVANCE, CHECK_HEALTH, POLL_ACTIONS, QUEUE, SWEEP
from workers.deps import Deps
from workers.labels import instance_labels
from workers.providers.hetzner import HetznerProvider

#: Redis keys of the queue.
IDS, MESSAGES = f"hydracore:{QUEUE}", f"hydracore:{QUEUE}.msgs"

#: What happens once in a life without trouble.
ONCE = {
    "instance_requested",
    "placement_chosen",
    "address_reserved",
    "server_intended",
    "server_created",
    "agent_enrolled",
    "agent_key_issued",
    "agent_key_acknowledged",
    "instance_ready",
    "deletion_requested",
    "agent_key_revoked",
    "instance_deleted",
}


@pytest.fixture
async def crowd(stack: Stack) -> AsyncGenerator[Stack]:
    """A stack with a second relay and a second worker."""
    others = [stack.program("relay"), stack.program("worker")]
    for other in others:
        other.start()
    for other in others:
        await stack.until_started(other)
    yield stack
    for other in others:
        other.kill()


async def test_two_relays_and_two_workers_do_each_step_once(crowd: Stack) -> None:
    before = crowd.cloudsim.requests("create_server")

    ids = await asyncio.gather(*(crowd.create() for _ in range(8)))
    for instance_id in ids:
        await crowd.until_status(instance_id, "running")
        crowd.server(instance_id)
    assert crowd.cloudsim.requests("create_server") - before == len(ids)
    heard = "SELECT instance_id FROM heartbeat WHERE instance_id = ANY (%s)"
    assert len(crowd.rows(heard, ids)) == len(ids)
    await asyncio.gather(*(crowd.delete(instance_id) for instance_id in ids))

    for instance_id in ids:
        await crowd.until_status(instance_id, "deleted")
        crowd.assert_no_server(instance_id)
        counts = Counter(crowd.types(instance_id))
        assert {type_: count for type_, count in counts.items() if type_ in ONCE and count != 1} == {}
        assert counts["teardown_step_done"] == 6
    assert crowd.rows(heard, ids) == []


async def test_doubled_and_late_messages_change_nothing(stack: Stack) -> None:
    alive, gone = await stack.running(), await stack.running()
    await stack.delete(gone)
    await stack.until_status(gone, "deleted")
    types = [stack.types(instance_id) for instance_id in (alive, gone)]
    requests = [stack.cloudsim.requests(change) for change in ("create_server", "delete_server", "update_server")]

    for _ in range(5):
        stack.hint(ADVANCE, alive, gone, alive, gone, uuid4())
        stack.hint(CHECK_HEALTH, alive, gone, uuid4())
        stack.hint(POLL_ACTIONS)
        stack.hint(SWEEP)
    await stack.until(lambda: is_drained(stack))

    assert [stack.types(instance_id) for instance_id in (alive, gone)] == types
    assert [
        stack.cloudsim.requests(change) for change in ("create_server", "delete_server", "update_server")
    ] == requests


async def test_invalid_messages_in_the_queue_are_skipped(stack: Stack) -> None:
    with redis.Redis.from_url(stack.redis_url) as client:
        for garbage in (
            message("no_such_actor"),
            message(ADVANCE),
            message(ADVANCE, "not-an-id"),
            message(ADVANCE, str(uuid4()), "one too many"),
            message(CHECK_HEALTH, 7),
            b"not even JSON",
        ):
            number = uuid4().hex
            client.hset(MESSAGES, number, garbage)
            client.rpush(IDS, number)
        client.rpush(IDS, "an id without a message")

    instance_id = await stack.running()

    await stack.delete(instance_id)
    await stack.until_status(instance_id, "deleted")


async def test_of_many_queued_sweeps_only_a_few_are_run(stack: Stack) -> None:
    stack.worker.kill()
    for _ in range(40):
        stack.hint(SWEEP)
    stack.cloudsim.fault("list_servers", "hold_before", times=SWEEPS_MAX)
    before = stack.cloudsim.requests("list_servers")

    stack.worker.start()
    await stack.until(lambda: len(stack.cloudsim.held()) == SWEEPS_MAX)
    with redis.Redis.from_url(stack.redis_url) as client:
        await stack.until(lambda: client.hlen(MESSAGES) == SWEEPS_MAX)
    stack.cloudsim.call("POST", "/_sim/release", {"all": True})

    assert stack.cloudsim.requests("list_servers") == before + SWEEPS_MAX


async def test_of_many_queued_polls_of_a_slow_provider_only_a_few_are_run(stack: Stack) -> None:
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "dead_boot", name=f"hc-{instance_id}")
    stack.cloudsim.fault("get_actions", "server_error", times=None)
    await stack.create(key)
    await stack.until(lambda: stack.has_happened(instance_id, "server_created"))
    for part in (stack.relay, stack.worker):
        part.kill()
    stack.cloudsim.call("DELETE", "/_sim/faults")
    stack.cloudsim.fault("get_actions", "hold_before", times=None)
    before = stack.cloudsim.requests("get_actions")
    for _ in range(40):
        stack.hint(POLL_ACTIONS)

    stack.worker.start()
    await stack.until(lambda: len(stack.cloudsim.held()) == POLLS_MAX)
    with redis.Redis.from_url(stack.redis_url) as client:
        await stack.until(lambda: client.hlen(MESSAGES) <= POLLS_MAX)

    assert stack.cloudsim.requests("get_actions") == before + POLLS_MAX
    stack.cloudsim.call("POST", "/_sim/release", {"all": True})
    stack.relay.start()
    await stack.delete(instance_id)
    await stack.until_status(instance_id, "deleted")


async def test_lost_messages_are_sent_again(stack: Stack) -> None:
    stack.worker.kill()
    instance_id = await stack.create()
    with redis.Redis.from_url(stack.redis_url) as client:
        await stack.until(lambda: client.llen(IDS))
        # No worker has taken what the relay sent: it is lost, and the relay does not send it a second time.
        client.delete(IDS, MESSAGES)
    stack.worker.start()

    await stack.until_status(instance_id, "running")

    stack.worker.kill()
    await stack.delete(instance_id)
    with redis.Redis.from_url(stack.redis_url) as client:
        await stack.until(lambda: client.llen(IDS))
        client.flushdb()
    stack.worker.start()
    await stack.until_status(instance_id, "deleted")


async def test_a_hint_with_a_timestamp_far_in_the_past_is_processed(stack: Stack) -> None:
    stack.relay.kill()
    instance_id = await stack.create()

    with redis.Redis.from_url(stack.redis_url) as client:
        number = uuid4().hex
        client.hset(MESSAGES, number, message(ADVANCE, str(instance_id), at_ms=1_000_000_000_000))
        client.rpush(IDS, number)

    # No other hint is sent: the reconciler is a part of the relay, which was killed.
    await stack.until(lambda: stack.has_happened(instance_id, "server_created"))


@pytest.mark.parametrize(
    ("step", "labelled"),
    [("discard", True), ("discard", False), ("ensure", True)],
    ids=["discard", "discard, without labels", "ensure"],
)
async def test_a_worker_that_has_lost_its_lock_does_not_delete_servers_of_later_attempts(
    stack: Stack, provider: HetznerProvider, step: str, *, labelled: bool
) -> None:
    stack.worker.kill()
    key, instance_id = stack.new_key()
    if step == "ensure":
        # The worker then looks up the outcome of its create.
        stack.cloudsim.fault("create_server", "gateway", name=f"hc-{instance_id}")
    stack.cloudsim.fault("create_server", "start_error", name=f"hc-{instance_id}", skip=int(step == "ensure"))
    await stack.create(key)
    async with stack.deps(provider_timeout_s="30") as deps:
        if step == "discard":
            await advance(deps, instance_id)
            await stack.until(lambda: has_failed(stack, deps, instance_id))
        stack.cloudsim.fault("list_servers", "hold_before")
        late = asyncio.create_task(advance(deps, instance_id))
        await stack.until(stack.cloudsim.held)

        assert stack.rows(END_LOCK_SESSIONS), "the lock goes with its session"
        stack.worker.start()
        await stack.until_status(instance_id, "running")
        server_id = stack.logged_server_id(instance_id)
        assert stack.server(instance_id)["labels"]["hc-attempt"] == "2"
        if not labelled:
            # Now only the log tells the server from one of an earlier attempt.
            await provider.set_labels(server_id, instance_labels("hydracore", instance_id))
        deletions = stack.cloudsim.requests("delete_server")
        stack.cloudsim.call("POST", "/_sim/release", {"all": True})
        await late

    assert stack.cloudsim.requests("delete_server") == deletions
    assert stack.server(instance_id)["id"] == int(server_id)
    assert (await stack.detail(instance_id))["status"] == "running"


async def test_a_worker_that_notices_that_it_lost_its_lock_takes_no_further_step(
    stack: Stack, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    # In a database that no worker uses, and with a server that the provider does not have.
    async with stack.deps(database_url=database_url) as slow, stack.deps(database_url=database_url) as other:
        instance_id = await record_instance(slow, 0, lifecycle.created(server_id="9999999999"), lifecycle.failed())
        stack.cloudsim.fault("list_servers", "hold_before")
        late = asyncio.create_task(advance(slow, instance_id))
        await stack.until(stack.cloudsim.held)

        await owner_conn.execute(END_LOCK_SESSIONS)
        async with other.locks.hold(instance_id) as hold, slow.locks.hold(uuid4()):
            # Taking another instance's lock makes the slow worker notice that its session is gone.
            assert hold is not None
            stack.cloudsim.call("POST", "/_sim/release", {"all": True})
            await late

    told = await owner_conn.execute("SELECT type FROM event WHERE stream_id = %s ORDER BY version", (instance_id,))
    # The step in progress is recorded; the next attempt is left to the holder of the lock.
    assert [name for (name,) in await told.fetchall()][-2:] == ["attempt_failed", "server_discarded"]


@pytest.mark.parametrize("locked", [False, True], ids=["free", "locked while it is being made"])
async def test_a_server_whose_create_ends_after_its_instance_was_deleted_is_deleted(
    stack: Stack, database_url: str, owner_conn: psycopg.AsyncConnection, *, locked: bool
) -> None:
    instance_id = uuid4()
    if locked:
        stack.cloudsim.fault("delete_server", "locked", name=f"hc-{instance_id}")
    stack.cloudsim.fault("create_server", "hold_before", name=f"hc-{instance_id}")
    # In a database that no worker uses.
    async with (
        stack.deps(database_url=database_url, provider_timeout_s="30") as patient,
        stack.deps(database_url=database_url, provider_timeout_s="0.5") as brisk,
    ):
        await record_now(brisk, instance_id, lifecycle.request())
        late = asyncio.create_task(advance(patient, instance_id))
        await stack.until(stack.cloudsim.held)

        await owner_conn.execute(END_LOCK_SESSIONS)
        await record_now(brisk, instance_id, lifecycle.delete())
        await stack.until(lambda: is_deleted(brisk, instance_id))
        stack.cloudsim.call("POST", "/_sim/release", {"all": True})
        await late

    assert len(stack.servers(instance_id)) == 1, "the late create made a server"
    await stack.until(lambda: stack.servers(instance_id)[0]["deleted_at"] is not None)


async def is_deleted(deps: Deps, instance_id: UUID) -> bool:
    await advance(deps, instance_id)
    state = await deps.store.load(instance_id)
    return state is not None and state.status == "deleted"


async def has_failed(stack: Stack, deps: Deps, instance_id: UUID) -> bool:
    await poll_actions(deps)
    return stack.has_happened(instance_id, "attempt_failed")


def is_drained(stack: Stack) -> bool:
    """Whether every message has been taken and processed."""
    with redis.Redis.from_url(stack.redis_url) as client:
        return not client.hlen(MESSAGES)


def message(actor: str, *args: object, at_ms: int = 4_000_000_000_000) -> bytes:
    """A job message as Dramatiq writes it."""
    number = uuid4().hex
    return msgspec.json.encode(
        {
            "queue_name": QUEUE,
            "actor_name": actor,
            "args": args,
            "kwargs": {},
            "options": {"redis_message_id": number},
            "message_id": number,
            "message_timestamp": at_ms,
        }
    )
