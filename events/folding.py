"""A stream's stored events folded in pages: what contradicts itself, or makes no sense, is a `LogCorrupted` at its place, never a
state that looks right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from uuid import UUID

from events.errors import EventUnreadable, LogCorrupted
from events.evolve import evolve, evolve_all
from events.ids import lane_of
from events.state import Instance
from events.types import AnyEvent
from events.upcast import read

#: What the fold needs of an event: its number, version, type, schema version, and exact payload.
Stored = tuple[int, int, str, int, str]


def folded(state: Instance | None, page: Sequence[Stored], *, stream_id: UUID) -> Instance | None:
    """`state` after all events of `page`, at half the price of `folding`, which is asked where it is not that simple. Raises as it
    does.
    """
    if not page:
        return state
    version = version_of(state)
    if all(found == due for due, (_, found, *_) in enumerate(page, version + 1)):
        # Whatever breaks here breaks there, too, and is told with its place.
        with suppress(Exception):
            events = [read(payload, tag=tag, schema_version=number) for _, _, tag, number, payload in page]
            return evolve_all(state, events, stream_id=stream_id)
    ((_, last),) = deque(folding(state, page, stream_id=stream_id), maxlen=1)
    return last


def folding(state: Instance | None, page: Iterable[Stored], *, stream_id: UUID) -> Iterator[tuple[AnyEvent, Instance]]:
    """Each event of a stream with the state after it, from `state` on.

    Raises `LogCorrupted`, and `EventUnreadable` for what a newer version wrote.
    """
    version = version_of(state)
    for seq, found, tag, schema_version, payload in page:
        version += 1
        if found != version:
            raise LogCorrupted(lane_of(stream_id), seq, f"stream {stream_id} has {found} where {version} must be")
        try:
            event = read(payload, tag=tag, schema_version=schema_version)
            state = evolve(state, event, stream_id=stream_id)
        except EventUnreadable:
            raise
        except Exception as error:
            # A history that somebody made up may break the fold anywhere.
            what = f"the history of {stream_id} makes no sense here: {type(error).__name__}"
            raise LogCorrupted(lane_of(stream_id), seq, what) from error
        yield event, state


def version_of(state: Instance | None) -> int:
    return 0 if state is None else state.version
