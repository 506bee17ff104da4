"""The event store: loads streams and executes commands on them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from uuid import UUID

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.batch import IN_LOG
from events.commands import AnyCommand, RequestInstance
from events.committer import Committer
from events.decide import decide
from events.errors import LogCorrupted, NotFound, Rejected, RequestMismatch, VersionConflict
from events.evolve import evolve_all
from events.folding import version_of
from events.ids import lane_of
from events.loading import Loader
from events.record import Append, InlineProjection, Origin, Outcome
from events.retries import run, with_retries
from events.sql import Statements
from events.state import Instance
from events.stream_locks import StreamLocks
from events.stream_state import StreamState
from events.types import AnyEvent

_SQL = Statements("events", "store.sql")
_COMMAND_RESULT = _SQL["command_result"]
_STREAM_END = _SQL["stream_end"]

#: How often a command is decided before its caller gets `VersionConflict`: each time, another process appended first.
RACES_MAX = 64


class EventStore:
    """Loads, decides and appends. One per process, on an open pool of autocommit connections.

    `inline`: the projections that are written in the transaction of each append. `on_commit`: called after each commit with the new
    head of each lane that moved, to wake followers; it must neither block nor raise.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool,
        *,
        inline: Sequence[InlineProjection],
        on_commit: Callable[[dict[int, int]], None] | None = None,
    ) -> None:
        self._pool = pool
        self._committer = Committer(pool, inline, on_commit=on_commit)
        self._stream_locks = StreamLocks()
        self._loader = Loader(pool)

    async def close(self) -> None:
        """Wait for the appends in progress. Does not close the pool."""
        await self._committer.close()

    async def load(self, stream_id: UUID) -> Instance | None:
        """The present state of the instance; None if there is no such stream.

        Raises `StoreUnavailable`, `LogCorrupted` if the stream contradicts itself, and `EventUnreadable`.
        """
        return await self._loader.load(stream_id)

    async def create(self, stream_id: UUID, command: RequestInstance, origin: Origin) -> Outcome:
        """Begin a stream. Takes one round trip: it does not check first whether the stream exists.

        A repeated command with the same `request_hash` gets its outcome from the log, with `duplicate` set. Raises `RequestMismatch`
        if the command id was used with another request.
        """
        outcome = await self._append(None, stream_id, command, origin)
        assert outcome is not None, "a first request always has an event"
        return outcome

    async def earlier_outcome(self, stream_id: UUID, origin: Origin) -> Outcome | None:
        """The outcome of an earlier `create` with this origin, without the command; None if there was none.

        For callers that can no longer build the command. Raises `RequestMismatch` and `StoreUnavailable`.
        """

        async def read(connection: AsyncConnection) -> tuple[bytes | None, str | None] | None:
            cursor = await connection.execute(_COMMAND_RESULT, (lane_of(stream_id), origin.command_id))
            return await cursor.fetchone()

        known = await with_retries(self._pool, read)
        if known is None:
            return None
        request_hash, result = known
        return await self._outcome_in_log(
            stream_id, origin, request_hash=request_hash, result=None if result is None else result.encode()
        )

    async def execute(self, stream_id: UUID, command: AnyCommand, origin: Origin) -> Outcome:
        """Load, decide and append; after a lost race, again. Commands of this process on one stream run one after the other.

        A repeated command that has nothing left to do gets the present state, not its stored result. Raises what `decide` raises,
        `ReservationTaken`, `StoreUnavailable`, `VersionConflict` after `RACES_MAX` lost races, and `LogCorrupted` if the conflict is
        not with another writer but within the log.
        """

        async def given(_state: Instance | None) -> AnyCommand:
            return command

        async with self._stream_locks.hold(stream_id):
            cached = self._loader.cached(stream_id)
            if cached is not None:
                # The cached state may be outdated. An append at it is safe, because the log checks the version. An outcome
                # without events or a rejection is not, so those are decided again at a state that was just loaded.
                with suppress(Rejected, VersionConflict):
                    outcome = await self._append(cached.state, stream_id, command, origin)
                    if outcome is not None:
                        return outcome
            return await self._change(stream_id, given, origin)

    async def change(
        self, stream_id: UUID, command_at: Callable[[Instance | None], Awaitable[AnyCommand]], origin: Origin
    ) -> Outcome:
        """As `execute`, with the command that `command_at` returns for the present state (None if there is no such stream).

        `command_at` is called again after each lost race, and must not change the stream itself. Raises what it raises, too.
        """
        async with self._stream_locks.hold(stream_id):
            return await self._change(stream_id, command_at, origin)

    async def _change(
        self, stream_id: UUID, command_at: Callable[[Instance | None], Awaitable[AnyCommand]], origin: Origin
    ) -> Outcome:
        state = await self.load(stream_id)
        # Each try appends at the version that was just loaded, and the log checks that it is still the last one: no lock is needed
        # against other processes.
        for _ in range(RACES_MAX - 1):
            try:
                return await self.execute_at(state, stream_id, await command_at(state), origin)
            except VersionConflict as lost:
                state = await self.load_after_conflict(lost)
        return await self.execute_at(state, stream_id, await command_at(state), origin)

    async def load_after_conflict(self, conflict: VersionConflict) -> Instance | None:
        """The state of the instance after a lost race.

        Raises what `load` raises, and `LogCorrupted` if no other writer has won the race, so that the log contradicts itself. A
        conflict at the expected version itself means that another event is there: a standby that lacks the last events has taken over.
        """
        stream_id = conflict.stream_id
        state = await self.load(stream_id)
        if version_of(state) == conflict.expected != conflict.actual:
            # Such a standby may also have taken over since the conflict: what the log says now is compared, in one statement.
            for version, last in await run(self._pool, _STREAM_END, (lane_of(stream_id), stream_id)):
                if version != last:
                    what = f"stream {stream_id} is said to be at version {version}, and its events end with {last}"
                    raise LogCorrupted(lane_of(stream_id), 0, what)
        return state

    async def execute_at(self, state: Instance | None, stream_id: UUID, command: AnyCommand, origin: Origin) -> Outcome:
        """Decide at `state`, and append the events behind it. Raises `VersionConflict` if the stream has newer events."""
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
        append = Append(
            stream_id=stream_id,
            lane=lane_of(stream_id),
            name=type(command).__name__,
            before=state,
            after=after,
            events=events,
            origin=origin,
            # By its version alone, the log could not tell `state` from one of another history that has as many events.
            before_digest=None if state is None else await self._loader.digest_of(state),
        )
        answer = await self._committer.commit(append)
        if answer.outcome == "appended":
            assert answer.version == after.version, "the log and the fold count alike"
            await self._loader.record_append(append.expected_version, StreamState(after, answer.digest))
            return Outcome(state=after, events=events)
        self._loader.evict(stream_id)
        if answer.outcome == "conflict":
            raise VersionConflict(stream_id, expected=append.expected_version, actual=answer.version)
        own_events = events if answer.outcome in IN_LOG else ()
        return await self._outcome_in_log(
            stream_id, origin, request_hash=answer.request_hash, result=answer.result, events=own_events
        )

    async def _outcome_in_log(
        self,
        stream_id: UUID,
        origin: Origin,
        *,
        request_hash: bytes | None,
        result: bytes | None,
        events: tuple[AnyEvent, ...] = (),
    ) -> Outcome:
        """The outcome of a command that is already in the log, with the request hash and the result that are stored there."""
        if not origin.is_same_request(request_hash):
            raise RequestMismatch(stream_id)
        now = await self.load(stream_id)
        assert now is not None, "a recorded command has a stream"
        return Outcome(state=now, events=events, duplicate=True, result=result)
