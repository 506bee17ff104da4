# Dramatiq types its broker in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Dramatiq on Redis, for hints: messages that only say "look at these instances".

A hint may be lost, delivered twice or late, as the log and the reconciler know which work is due. So hints have neither retries nor
results. Nor do they expire: an old hint costs only a look at its instances, and machines whose clocks differ would drop the hints of
each other.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from threading import Lock
from typing import Final
from uuid import UUID

import uvloop
from dramatiq import Broker, Consumer, Message, MessageProxy, Worker
from dramatiq.asyncio import EventLoopThread, set_event_loop_thread
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer  # pyright: ignore[reportPrivateUsage] - it has no other name
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import AsyncIO, Middleware
from redis import Redis
from redis.exceptions import ConnectionError, OutOfMemoryError, ReadOnlyError, ResponseError, TimeoutError  # noqa: A004 - as redis calls them

from hydracore.backends import REDIS_TIMEOUT_S

QUEUE = "hydracore"

ADVANCE = "advance"
CHECK_HEALTH = "check_health"
#: Sent by that name: in a rolling update, workers of an earlier release know no other.
POLL_ACTIONS = "observe_actions"
SWEEP = "sweep"
FOLD_LANES = "fold_lanes"

#: After this time, the unread hints of a killed worker go to other workers.
HEARTBEAT_TIMEOUT_MS = 10_000
#: How many of a million commands also make the broker look for such workers: one in ten.
MAINTENANCE_CHANCE = 100_000

#: How often an idle worker looks for hints. By itself, Dramatiq would look less and less often, down to once a second.
IDLE_POLL_MS = 40

#: The longest that the start of the actors' event loop may take.
LOOP_START_S_MAX = 5.0


class _FastAsyncIO(AsyncIO):
    """Runs the actors on uvloop, because a third of a worker's CPU time is spent in its event loop."""

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002 - a hook
        thread = EventLoopThread(self.logger)
        thread.loop.close()
        thread.loop = uvloop.new_event_loop()
        thread.start(timeout=LOOP_START_S_MAX)
        set_event_loop_thread(thread)


class _ConnectionErrorsAsWarnings(logging.Filter):
    """Logs Dramatiq's errors about a lost Redis as warnings: a worker recovers from that by itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith("Consumer encountered a connection error"):
            record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
        return True


_CONNECTION_ERRORS_AS_WARNINGS = _ConnectionErrorsAsWarnings()

#: The prefixes of further answers of a Redis that takes no writes: it cannot write to its disk, or has lost its replicas.
_REFUSES_WRITES: Final = ("MISCONF", "NOREPLICAS")


@contextmanager
def _unavailable_as_closed() -> Generator[None]:
    """Raise `ConnectionClosed` if Redis does not answer or takes no writes.

    Dramatiq waits for a Redis whose connection was closed, but treats these other errors as bugs.
    """
    try:
        yield
    except (ConnectionError, TimeoutError, ReadOnlyError, OutOfMemoryError) as error:
        raise ConnectionClosed(error) from None
    except ResponseError as error:
        if str(error).startswith(_REFUSES_WRITES):
            raise ConnectionClosed(error) from None
        raise


class _PatientConsumer(_RedisConsumer):
    def ack(self, message: MessageProxy) -> None:
        with _unavailable_as_closed():
            super().ack(message)

    def nack(self, message: MessageProxy) -> None:
        with _unavailable_as_closed():
            super().nack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        with _unavailable_as_closed():
            super().requeue(messages)

    def __next__(self) -> MessageProxy | None:
        with _unavailable_as_closed():
            return super().__next__()


class _PromptBroker(RedisBroker):
    @property
    def consumer_class(self) -> type[_PatientConsumer]:
        return _PatientConsumer

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        # The consumer thread logs to a logger that is named after the queue. A filter that is added again is added once.
        logging.getLogger(f"dramatiq.worker.ConsumerThread({queue_name})").addFilter(_CONNECTION_ERRORS_AS_WARNINGS)
        # The other queue is for delayed messages, and none are sent here.
        return super().consume(queue_name, prefetch, min(timeout, IDLE_POLL_MS) if queue_name == QUEUE else timeout)


def redis_broker(redis_url: str, *extra: Middleware) -> RedisBroker:
    """The broker. The `extra` middleware comes after `AsyncIO`, so that it can open resources on the actors' event loop."""
    return _PromptBroker(
        client=Redis.from_url(
            redis_url, socket_connect_timeout=REDIS_TIMEOUT_S, socket_timeout=REDIS_TIMEOUT_S, health_check_interval=30
        ),
        middleware=[_FastAsyncIO(), *extra],
        namespace="hydracore",
        heartbeat_timeout=HEARTBEAT_TIMEOUT_MS,
        maintenance_chance=MAINTENANCE_CHANCE,
    )


class HintSender:
    """Sends hints. Its methods block, so call them in a thread. They raise redis-py's errors if Redis is unavailable."""

    #: The most hints in the queue. Beyond that, no more are sent: the workers are behind, and the work stays due.
    BACKLOG_MAX = 10_000

    #: The most instances per hint. A worker's thread handles them concurrently. With one instance per hint, a relay spent a fifth of
    #: its CPU time on making and sending hints.
    IDS_MAX = 8

    #: The most hints per pipeline. Hints that are sent one by one would each wait for the answer to the one before.
    TOGETHER_MAX = 500

    def __init__(self, redis_url: str) -> None:
        self._broker = redis_broker(redis_url)
        self._broker.declare_queue(QUEUE)
        #: The relay and the reconciler send from different threads.
        self._one_at_a_time = Lock()

    def send(self, actor: str, instance_ids: list[UUID]) -> bool:
        """Send hints for these instances. False if the queue is full: then some or all hints were not sent."""
        ids = [str(instance_id) for instance_id in instance_ids]
        return self._send([_message(actor, *ids[at : at + self.IDS_MAX]) for at in range(0, len(ids), self.IDS_MAX)])

    def send_duty(self, actor: str) -> bool:
        """Send a hint for a duty that belongs to no single instance. False if the queue is full."""
        return self._send([_message(actor)])

    def send_fold_hints(self, name: str, generation: int, hints: int) -> bool:
        """Send `hints` hints to fold lanes of a build, so that as many workers may take part. False if the queue is full."""
        return self._send([_message(FOLD_LANES, name, str(generation)) for _ in range(hints)])

    def close(self) -> None:
        self._broker.close()

    def _send(self, messages: list[Message[None]]) -> bool:
        with self._one_at_a_time:
            for at in range(0, len(messages), self.TOGETHER_MAX):
                if not self._has_room():
                    return False
                self._send_together(messages[at : at + self.TOGETHER_MAX])
        return True

    def _send_together(self, messages: list[Message[None]]) -> None:
        # Dramatiq enqueues with a Lua script, which runs through its registered client: here, a pipeline.
        client, script = self._broker.client, self._broker.scripts["dispatch"]
        with client.pipeline(transaction=False) as pipeline:
            script.registered_client = pipeline
            try:
                for message in messages:
                    self._broker.enqueue(message)
            finally:
                script.registered_client = client
            pipeline.execute()

    def _has_room(self) -> bool:
        client: Redis = self._broker.client
        return int(client.llen(f"hydracore:{QUEUE}")) < self.BACKLOG_MAX


def _message(actor: str, *args: str) -> Message[None]:
    return Message(queue_name=QUEUE, actor_name=actor, args=args, kwargs={}, options={})
