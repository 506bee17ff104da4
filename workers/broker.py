# Dramatiq types its broker in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Dramatiq on Redis, for hints: a message says "look at these instances" and nothing else.

Messages are hints. Each may be lost, doubled or late; the log and the reconciler know what is owed. Hence no retries, no
results, and no age: an old hint costs a look at what is owed, and machines whose clocks differ would drop each other's.
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

from hydracore.opening import REDIS_TIMEOUT_S

QUEUE = "hydracore"

ADVANCE = "advance"
CHECK_HEALTH = "check_health"
OBSERVE_ACTIONS = "observe_actions"
SWEEP = "sweep"
FOLD_LANES = "fold_lanes"

#: A killed worker's unread hints go to the others after this long.
HEARTBEAT_TIMEOUT_MS = 10_000
MAINTENANCE_CHANCE = 100_000  # of a million commands: one in ten

#: How long a hint to an idle worker lies unread at most. Dramatiq would look ever less often, down to once a second.
IDLE_POLL_MS = 40

#: How long the start of the actors' loop may take.
LOOP_START_S_MAX = 5.0


class _FastAsyncIO(AsyncIO):
    """Runs the actors on uvloop: a third of a worker's CPU time is its loop's."""

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002 - a hook
        thread = EventLoopThread(self.logger)
        thread.loop.close()
        thread.loop = uvloop.new_event_loop()
        thread.start(timeout=LOOP_START_S_MAX)
        set_event_loop_thread(thread)


class _PassingTrouble(logging.Filter):
    """Redis being away passes by itself, and is nobody's error."""

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith("Consumer encountered a connection error"):
            record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
        return True


_PASSING_TROUBLE = _PassingTrouble()

#: What a Redis says, beside those of which its client makes errors of their own, that cannot write to its disk or has lost its replicas.
_TAKES_NOTHING: Final = ("MISCONF", "NOREPLICAS")


@contextmanager
def _silence_as_loss() -> Generator[None]:
    """Redis that does not answer, or takes nothing, is as good as gone. Dramatiq takes that for a bug of its own, and knows how to
    outwait one that is gone.
    """
    try:
        yield
    except (ConnectionError, TimeoutError, ReadOnlyError, OutOfMemoryError) as error:
        raise ConnectionClosed(error) from None
    except ResponseError as error:
        if str(error).startswith(_TAKES_NOTHING):
            raise ConnectionClosed(error) from None
        raise


class _PatientConsumer(_RedisConsumer):
    def ack(self, message: MessageProxy) -> None:
        with _silence_as_loss():
            super().ack(message)

    def nack(self, message: MessageProxy) -> None:
        with _silence_as_loss():
            super().nack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        with _silence_as_loss():
            super().requeue(messages)

    def __next__(self) -> MessageProxy | None:
        with _silence_as_loss():
            return super().__next__()


class _PromptBroker(RedisBroker):
    @property
    def consumer_class(self) -> type[_PatientConsumer]:
        return _PatientConsumer

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        # The thread that consumes has a logger of its own, and has no other place to be told. Twice is as once.
        logging.getLogger(f"dramatiq.worker.ConsumerThread({queue_name})").addFilter(_PASSING_TROUBLE)
        # The other queue is for delayed messages, which are never sent here.
        return super().consume(queue_name, prefetch, min(timeout, IDLE_POLL_MS) if queue_name == QUEUE else timeout)


def redis_broker(redis_url: str, *extra: Middleware) -> RedisBroker:
    """The broker; `extra` middleware comes after `AsyncIO`, so that it may open things on the actors' loop."""
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
    """Sends hints. Blocking: to be called in a thread. Raises redis-py's errors where Redis is away."""

    #: Hints in the queue beyond which no more are sent: workers are behind, and what is owed stays owed.
    BACKLOG_MAX = 10_000

    #: Instances that one hint is about: a worker's thread sees to them side by side. Making and sending hints took a fifth of a
    #: relay's CPU time when each was about one.
    IDS_MAX = 8

    #: Hints that travel together: sent one by one, each would wait for Redis to have taken the one before.
    TOGETHER_MAX = 500

    def __init__(self, redis_url: str) -> None:
        self._broker = redis_broker(redis_url)
        self._broker.declare_queue(QUEUE)
        #: Relay and reconciler send from threads of their own.
        self._one_at_a_time = Lock()

    def send(self, actor: str, instance_ids: list[UUID]) -> bool:
        """Hint at each instance. False where the queue got full: some or all were not sent."""
        ids = [str(instance_id) for instance_id in instance_ids]
        return self._send([_message(actor, *ids[at : at + self.IDS_MAX]) for at in range(0, len(ids), self.IDS_MAX)])

    def send_duty(self, actor: str) -> bool:
        """Hint at a duty that is nobody's in particular."""
        return self._send([_message(actor)])

    def send_build(self, name: str, generation: int, hints: int) -> bool:
        """Hint `hints` times at lanes of a build that are to be folded, so that as many workers may help."""
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
        # Dramatiq enqueues by a script of its own, which goes wherever its client sends it: here into a pipeline.
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
