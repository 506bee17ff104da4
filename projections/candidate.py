"""A build that is to take the place of the live tables, with what has to be remembered from one step towards that to the next."""

from __future__ import annotations

from typing import NamedTuple

from psycopg import AsyncConnection

from events.heads import read_heads
from events.ids import LANES
from events.pacing import Pace
from projections.catching_up import CaughtUp, Positions, catch_up, read_positions
from projections.definition import Inline, Projection
from projections.drift import Scope
from projections.generations import Generation
from projections.refolding import KeptFolds, Stream


class Unverified(NamedTuple):
    """What has changed since live and fresh tables were last found equal: lanes, and streams, each after which version."""

    lanes: set[int]
    streams: dict[Stream, int]

    def add(self, step: CaughtUp) -> None:
        self.lanes.update(step.lanes)
        for stream, version in step.streams.items():
            self.streams.setdefault(stream, version)

    def scope(self) -> Scope:
        return Scope(lanes=self.lanes, streams=self.streams)

    def clear(self) -> None:
        self.lanes.clear()
        self.streams.clear()


class Candidate(NamedTuple):
    """`live` None: a projection that was never built here. `unverified` None: nothing is compared. `pace`: how it gives way to writers."""

    projection: Projection
    build: Generation
    live: Generation | None
    kept: KeptFolds
    unverified: Unverified | None
    pace: Pace

    @classmethod
    def of(cls, projection: Projection, build: Generation, live: Generation | None, pace: Pace) -> Candidate:
        """One of which nothing was compared yet."""
        return cls(projection, build, live, KeptFolds(), Unverified(set(range(LANES)), {}), pace)

    async def goal(self, connection: AsyncConnection) -> dict[int, int]:
        """Where the live tables are: at the heads, or where their follower is."""
        if isinstance(self.projection, Inline):
            return await read_heads(connection)
        return await read_positions(connection, self.projection.name)

    async def step(self, connection: AsyncConnection, upto: Positions, *, read_max: int | None = None) -> CaughtUp:
        """Take the build to `upto`. Raises as `catch_up` does."""
        step = await catch_up(connection, self.projection, self.build, upto, self.kept, read_max=read_max)
        if self.unverified is not None:
            # Should it be undone, what it took is looked at once more than needed; nothing is looked at too little.
            self.unverified.add(step)
        return step
