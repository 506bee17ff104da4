"""Folds pages of a stream's stored events into states.

A history that contradicts itself or makes no sense raises `LogCorrupted` with its place. It never gives a state that looks right.
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

#: The columns of an event that a fold needs: number, version, type, schema version, and exact payload.
EventColumns = tuple[int, int, str, int, str]


def fold_page(state: Instance | None, page: Sequence[EventColumns], *, stream_id: UUID) -> Instance | None:
    """The state after all events of `page`. Raises as `fold_each`, and takes half its time on a page without errors."""
    if not page:
        return state
    version = version_of(state)
    if all(found == due for due, (_, found, *_) in enumerate(page, version + 1)):
        # If this raises, so does `fold_each` below, with the exact place.
        with suppress(Exception):
            events = [read(payload, tag=tag, schema_version=number) for _, _, tag, number, payload in page]
            return evolve_all(state, events, stream_id=stream_id)
    ((_, last),) = deque(fold_each(state, page, stream_id=stream_id), maxlen=1)
    return last


def fold_each(
    state: Instance | None, page: Iterable[EventColumns], *, stream_id: UUID
) -> Iterator[tuple[AnyEvent, Instance]]:
    """Each event of `page` with the state after it. `state`: the one before the page.

    Raises `LogCorrupted`, and `EventUnreadable` for an event that a newer release wrote.
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
            # A forged history may raise anything anywhere in the fold.
            what = f"the history of {stream_id} is inconsistent here: {type(error).__name__}"
            raise LogCorrupted(lane_of(stream_id), seq, what) from error
        yield event, state


def version_of(state: Instance | None) -> int:
    return 0 if state is None else state.version
