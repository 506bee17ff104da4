"""Wake-ups: followers are notified of each commit, in as few messages as possible."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import msgspec
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from hydracore import wake
from hydracore.wake import Publisher
from tests.waiting import until


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> str:
    """A channel of the test's own: channels are shared by all databases of a server."""
    channel = f"test:{uuid4()}"
    monkeypatch.setattr(wake, "CHANNEL", channel)
    return channel


async def heard(subscription: Any) -> dict[int, int]:
    """The next message."""
    found: list[Any] = []

    async def has_come() -> bool:
        message = await subscription.get_message(ignore_subscribe_messages=True, timeout=1)
        if message is not None:
            found.append(message)
        return bool(found)

    await until(has_come)
    return msgspec.json.decode(found[0]["data"], type=dict[int, int])


async def test_each_commit_is_published_and_concurrent_ones_in_one_message(redis_url: str, channel: str) -> None:
    async with Redis.from_url(redis_url) as redis, redis.pubsub() as subscription:
        await subscription.subscribe(channel)
        publisher = Publisher(redis)

        publisher.publish({1: 5})
        assert await heard(subscription) == {1: 5}
        publisher.publish({1: 6})
        publisher.publish({1: 7, 2: 1})
        assert await heard(subscription) == {1: 7, 2: 1}
        await publisher.close()


async def test_a_redis_that_is_away_is_logged_once_and_raises_nothing() -> None:
    async with Redis.from_url("redis://127.0.0.1:1") as redis:
        publisher = Publisher(redis)

        with capture_logs() as said:
            for head in (5, 6):
                publisher.publish({1: head})
                await publisher.close()

        assert [(line["event"], line["log_level"]) for line in said] == [("wake_ups_not_sent", "warning")]
