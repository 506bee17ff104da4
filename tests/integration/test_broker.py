"""A Redis that does not respond delays hints, but breaks no worker and causes no error in its log."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager
from uuid import uuid4

import dramatiq
import msgspec
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import ConnectionClosed
from redis import Redis

from tests.services import OwnServices
from tests.waiting import until
from workers import broker as b

SILENT_S = 0.3


async def test_a_worker_waits_for_a_redis_that_does_not_answer_and_logs_only_warnings(
    own_services: OwnServices, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(b, "REDIS_TIMEOUT_S", SILENT_S)
    broker = b.redis_broker(own_services.redis_url)
    taken, working, go_on = list[int](), threading.Event(), threading.Event()

    @dramatiq.actor(broker=broker, queue_name=b.QUEUE)
    def take(number: int) -> None:
        taken.append(number)
        working.set()
        go_on.wait()

    with working_on(broker):
        take.send(1)
        await asyncio.to_thread(working.wait)
        with own_services.frozen("valkey"):
            # Both have to wait: the thread that looks for hints, and the acknowledgement of the hint that was taken.
            go_on.set()
            await until(lambda: {"Consumer", "Failed"} <= {record.msg.split()[0] for record in caplog.records})
            await asyncio.sleep(2 * SILENT_S)
        take.send(2)
        await until(lambda: taken[-1] == 2)

    assert_only_warnings(caplog)


def test_no_more_hints_are_sent_than_the_backlog_may_hold(
    own_services: OwnServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(b.HintSender, "BACKLOG_MAX", 2)

    with closing(b.HintSender(own_services.redis_url)) as hints, Redis.from_url(own_services.redis_url) as redis:
        sent = [hints.send(b.ADVANCE, [uuid4()]) for _ in range(4)]
        duty = hints.send_duty(b.SWEEP)
        waiting = redis.llen(f"hydracore:{b.QUEUE}")

    assert (sent, duty, waiting) == ([True, True, False, False], False, 2)


def test_each_of_many_instances_is_in_exactly_one_hint(
    own_services: OwnServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(b.HintSender, "TOGETHER_MAX", 2)
    instance_ids = [uuid4() for _ in range(4 * b.HintSender.IDS_MAX + 1)]

    with closing(b.HintSender(own_services.redis_url)) as hints, Redis.from_url(own_services.redis_url) as redis:
        assert hints.send(b.ADVANCE, instance_ids)
        waiting = redis.hvals(f"hydracore:{b.QUEUE}.msgs")

    named = [msgspec.json.decode(message)["args"] for message in waiting]
    assert sorted(text for args in named for text in args) == sorted(map(str, instance_ids))
    assert sorted(map(len, named)) == [1, *[b.HintSender.IDS_MAX] * 4]


@pytest.mark.parametrize(
    ("stop", "go_on"),
    [
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
    ],
    ids=["a replica", "too few replicas"],
)
async def test_a_worker_waits_for_a_redis_that_refuses_writes_and_logs_only_warnings(
    own_services: OwnServices, caplog: pytest.LogCaptureFixture, stop: str, go_on: str
) -> None:
    broker = b.redis_broker(own_services.redis_url)
    taken = list[int]()

    @dramatiq.actor(broker=broker, queue_name=b.QUEUE)
    def take(number: int) -> None:
        taken.append(number)

    with working_on(broker), Redis.from_url(own_services.redis_url) as redis:
        redis.execute_command(stop)
        await until(lambda: "Consumer" in {record.msg.split()[0] for record in caplog.records})
        redis.execute_command(go_on)
        take.send(1)
        await until(lambda: taken == [1])

    assert_only_warnings(caplog)


@contextmanager
def working_on(broker: RedisBroker) -> Generator[None]:
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=100)
    worker.start()
    try:
        yield
    finally:
        worker.stop()
        broker.close()


def assert_only_warnings(caplog: pytest.LogCaptureFixture) -> None:
    logged = {(record.levelname, record.getMessage().partition(":")[0]) for record in caplog.records}
    assert ("WARNING", "Consumer encountered a connection error") in logged
    assert {level for level, _ in logged} <= {"WARNING", "INFO", "DEBUG"}, logged


@pytest.mark.parametrize("call", ["ack", "nack", "requeue", "__next__"])
def test_whatever_a_consumer_asks_a_silent_redis_ends_with_a_closed_connection(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(b, "REDIS_TIMEOUT_S", 0.02)
    options = {"redis_message_id": "1"}
    message = dramatiq.Message(queue_name=b.QUEUE, actor_name=b.SWEEP, args=(), kwargs={}, options=options)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        broker = b.redis_broker(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        consumer = broker.consume(b.QUEUE)
        asked = {"ack": [message], "nack": [message], "requeue": [[message]], "__next__": []}[call]

        with pytest.raises(ConnectionClosed):
            getattr(consumer, call)(*asked)
        broker.client.close()
