"""The door to the log: load a stream, execute a command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from uuid import UUID

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.batch import LANDED
from events.commands import AnyCommand, RequestInstance
from events.committer import Committer
from events.decide import decide
from events.errors import LogCorrupted, NotFound, Rejected, RequestMismatch, VersionConflict
from events.evolve import evolve_all
from events.folding import version_of
from events.ids import lane_of
from events.loading import Loader
from events.patience import patiently
from events.record import Append, InlineProjection, Origin, Outcome
from events.remembered import Remembered
from events.sql import Statements
from events.state import Instance
from events.turns import Turns
from events.types import AnyEvent

_SQL = Statements("events", "store.sql")
_REPEATED = _SQL["repeated"]

#: How often a command is decided again after a race that another process has won, before the caller learns of it.
RACES_MAX = 64


class EventStore:
    """Loads, decides and appends. One per process, on an open pool of autocommit connections.

    `inline`: the projections written in every append's transaction. `published`: told which lanes moved to which head
    after each commit, to wake followers; it must not block and must not raise.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool,
        *,
        inline: Sequence[InlineProjection],
        published: Callable[[dict[int, int]], None] | None = None,
    ) -> None:
        self._pool = pool
        self._committer = Committer(pool, inline, published=published)
        self._turns = Turns()
        self._loader = Loader(pool)

    async def close(self) -> None:
        """Wait for the appends under way; the pool stays its owner's."""
        await self._committer.close()

    async def load(self, stream_id: UUID) -> Instance | None:
        """The instance as its stream says now, or None where no stream is.

        Raises `StoreUnavailable`, `LogCorrupted` where the stream makes no sense, and `EventUnreadable`.
        """
        return await self._loader.load(stream_id)

    async def create(self, stream_id: UUID, command: RequestInstance, origin: Origin) -> Outcome:
        """Begin a stream, in one round trip and without looking first.

        A repeat with the same `request_hash` is answered from the log (`duplicate`). Raises `RequestMismatch` where the
        same command was given with another request.
        """
        outcome = await self._append(None, stream_id, command, origin)
        assert outcome is not None, "a first request always has an event"
        return outcome

    async def repeated(self, stream_id: UUID, origin: Origin) -> Outcome | None:
        """What `create` answers to a repeat, for whoever cannot make the command any more; None where it is no repeat.

        Raises `RequestMismatch` and `StoreUnavailable`.
        """

        async def read(connection: AsyncConnection) -> tuple[bytes | None, str | None] | None:
            cursor = await connection.execute(_REPEATED, (lane_of(stream_id), origin.command_id))
            return await cursor.fetchone()

        known = await patiently(self._pool, read)
        if known is None:
            return None
        request_hash, result = known
        return await self._answer_again(
            stream_id, origin, request_hash=request_hash, result=None if result is None else result.encode()
        )

    async def execute(self, stream_id: UUID, command: AnyCommand, origin: Origin) -> Outcome:
        """Load, decide and append, once those that came before are done, and again after each lost race.

        A repeat that finds nothing left to do is answered from the state of now, not with a stored result. Raises what
        `decide` refuses, `ReservationTaken`, `StoreUnavailable`, `VersionConflict` after `RACES_MAX` lost races, and `LogCorrupted`
        where what conflicts is the log with itself.
        """

        async def given(_state: Instance | None) -> AnyCommand:
            return command

        async with self._turns.turn(stream_id):
            remembered = self._loader.remembered(stream_id)
            if remembered is not None:
                # A remembered state may be old. An append there is safe, because the log checks the version; an answer that
                # writes nothing is not, and is given only at a state just loaded.
                with suppress(Rejected, VersionConflict):
                    outcome = await self._append(remembered.state, stream_id, command, origin)
                    if outcome is not None:
                        return outcome
            return await self._change(stream_id, given, origin)

    async def change(
        self, stream_id: UUID, command_at: Callable[[Instance | None], Awaitable[AnyCommand]], origin: Origin
    ) -> Outcome:
        """As `execute`, with the command that `command_at` makes of the instance as it is, which is None where no stream is.

        After each lost race it is asked again. Raises what it raises, too. It must not change the stream itself.
        """
        async with self._turns.turn(stream_id):
            return await self._change(stream_id, command_at, origin)

    async def _change(
        self, stream_id: UUID, command_at: Callable[[Instance | None], Awaitable[AnyCommand]], origin: Origin
    ) -> Outcome:
        state = await self.load(stream_id)
        for _ in range(RACES_MAX - 1):
            try:
                return await self.execute_at(state, stream_id, await command_at(state), origin)
            except VersionConflict as lost:
                state = await self.load_after(lost)
        return await self.execute_at(state, stream_id, await command_at(state), origin)

    async def load_after(self, lost: VersionConflict) -> Instance | None:
        """The instance after a lost race.

        Raises what `load` does, and `LogCorrupted` where nobody has won it: the log conflicts with itself. A conflict at the very version
        that was expected is with another event there: a standby without the last ones has taken over.
        """
        state = await self.load(lost.stream_id)
        if version_of(state) == lost.expected != lost.actual:
            what = f"stream {lost.stream_id} is said to be at version {lost.actual}, and its events end with {lost.expected}"
            raise LogCorrupted(lane_of(lost.stream_id), 0, what)
        return state

    async def execute_at(self, state: Instance | None, stream_id: UUID, command: AnyCommand, origin: Origin) -> Outcome:
        """Decide at `state` and append there. Raises `VersionConflict` where the stream has moved on since."""
        outcome = await self._append(state, stream_id, command, origin)
        if outcome is not None:
            return outcome
        if state is None:
            raise NotFound(stream_id)
        return Outcome(state=state, events=())

    async def _append(
        self, state: Instance | None, stream_id: UUID, command: AnyCommand, origin: Origin
    ) -> Outcome | None:
        events = decide(state, command, stream_id=stream_id)
        if not events:
            return None
        after = evolve_all(state, events, stream_id=stream_id)
        assert after is not None
        remembered = self._loader.remembered(stream_id)
        append = Append(
            stream_id=stream_id,
            lane=lane_of(stream_id),
            name=type(command).__name__,
            before=state,
            after=after,
            events=events,
            origin=origin,
            before_digest=remembered.digest if remembered is not None and remembered.state is state else None,
        )
        verdict = await self._committer.commit(append)
        if verdict.outcome == "appended":
            assert verdict.version == after.version, "the log and the fold count alike"
            if append.before is None or append.before_digest is not None:
                await self._loader.go_on(append.expected_version, Remembered(after, verdict.digest))
            else:
                # Nobody knows whether the log was still the one that this was decided on: the next load reads it.
                self._loader.forget(stream_id)
            return Outcome(state=after, events=events)
        self._loader.forget(stream_id)
        if verdict.outcome == "conflict":
            raise VersionConflict(stream_id, expected=append.expected_version, actual=verdict.version)
        mine = events if verdict.outcome in LANDED else ()
        return await self._answer_again(
            stream_id, origin, request_hash=verdict.request_hash, result=verdict.result, events=mine
        )

    async def _answer_again(
        self,
        stream_id: UUID,
        origin: Origin,
        *,
        request_hash: bytes | None,
        result: bytes | None,
        events: tuple[AnyEvent, ...] = (),
    ) -> Outcome:
        """The outcome of a command that is in the log, with what is stored there of its request."""
        if not origin.is_same_request(request_hash):
            raise RequestMismatch(stream_id)
        now = await self.load(stream_id)
        assert now is not None, "a recorded command has a stream"
        return Outcome(state=now, events=events, duplicate=True, result=result)
