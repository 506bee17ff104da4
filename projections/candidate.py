"""A build that is to replace the live tables, and the data that is kept between the steps towards that."""

from __future__ import annotations

from typing import NamedTuple

from psycopg import AsyncConnection

from events.heads import read_heads
from events.ids import LANES
from events.pacing import Pace
from projections.catching_up import CatchUpStep, Positions, catch_up, read_positions
from projections.definition import Inline, Projection
from projections.drift import Scope
from projections.generations import Generation
from projections.refolding import KeptFolds, Stream


class Unverified(NamedTuple):
    """What changed since live and new tables were last found equal: lanes, and streams with their version then."""

    lanes: set[int]
    streams: dict[Stream, int]

    def add(self, step: CatchUpStep) -> None:
        self.lanes.update(step.lanes)
        for stream, version in step.streams.items():
            self.streams.setdefault(stream, version)

    def scope(self) -> Scope:
        return Scope(lanes=self.lanes, streams=self.streams)

    def clear(self) -> None:
        self.lanes.clear()
        self.streams.clear()


class Candidate(NamedTuple):
    """A build on its way to be live.

    `live`: None for a projection that was never built in this database. `unverified`: None where nothing is to be
    compared. `pace`: how it gives way to writers.
    """

    projection: Projection
    build: Generation
    live: Generation | None
    kept: KeptFolds
    unverified: Unverified | None
    pace: Pace

    @classmethod
    def of(cls, projection: Projection, build: Generation, live: Generation | None, pace: Pace) -> Candidate:
        """A candidate of which nothing was compared yet."""
        return cls(projection, build, live, KeptFolds(), Unverified(set(range(LANES)), {}), pace)

    async def live_positions(self, connection: AsyncConnection) -> dict[int, int]:
        """The position of the live tables: the lanes' heads, or the checkpoints of their follower."""
        if isinstance(self.projection, Inline):
            return await read_heads(connection)
        return await read_positions(connection, self.projection.name)

    async def step(self, connection: AsyncConnection, upto: Positions, *, read_max: int | None = None) -> CatchUpStep:
        """Bring the build to `upto`. Raises as `catch_up` does."""
        step = await catch_up(connection, self.projection, self.build, upto, self.kept, read_max=read_max)
        if self.unverified is not None:
            # If the step is rolled back, its streams are compared once more than needed, but none is left out.
            self.unverified.add(step)
        return step
