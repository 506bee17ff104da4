"""Wake-ups on Redis: hints that a lane has moved. Losing one costs a follower's poll interval, never an event."""

from __future__ import annotations

import asyncio

import msgspec
import structlog
from redis.asyncio import Redis

from hydracore.redis_errors import REDIS_ERRORS

#: The pub/sub channel; a message is the JSON object {lane: head}.
CHANNEL = "hydracore:lanes"

_log = structlog.get_logger(__name__)


class Publisher:
    """Publishes the heads of lanes after commits. `publish`, which the `EventStore` calls, never blocks or raises."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._heads: dict[int, int] = {}
        self._sending: asyncio.Task[None] | None = None
        self._down = False

    def publish(self, heads: dict[int, int]) -> None:
        """Publish these heads as soon as the message before is sent, together with any that come until then."""
        self._heads.update(heads)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())

    async def close(self) -> None:
        if self._sending is not None:
            await self._sending

    async def _send(self) -> None:
        try:
            while self._heads:
                heads, self._heads = self._heads, {}
                await self._redis.publish(CHANNEL, msgspec.json.encode(heads))  # pyright: ignore[reportUnknownMemberType] - untyped keyword arguments
                self._down = False
        except REDIS_ERRORS as error:
            if not self._down:
                _log.warning("wake_ups_not_sent", error=type(error).__name__)
            self._down = True
        finally:
            self._sending = None
