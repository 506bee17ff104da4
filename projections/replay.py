"""The read tables as the log alone gives them: for parity checks of the inline tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from events.evolve import evolve
from events.record import Recorded
from events.state import Instance
from projections import instance, provision_log, reservation

Rows = list[dict[str, Any]]


class Replay:
    """Folds events, each stream's in order, into the rows that the inline projections must have written."""

    def __init__(self) -> None:
        self._states: dict[UUID, tuple[int, Instance]] = {}
        self.provision_log: Rows = []
        self._reservations: dict[tuple[str, str, UUID], dict[str, Any]] = {}

    def feed(self, events: Iterable[Recorded]) -> None:
        for recorded in events:
            known = self._states.get(recorded.stream_id)
            before = None if known is None else known[1]
            event = recorded.event
            after = evolve(before, event, stream_id=recorded.stream_id)
            assert after.version == recorded.version, "versions of a stream are dense"
            self._states[recorded.stream_id] = (recorded.lane, after)
            self.provision_log += provision_log.rows_of(
                (event,), stream_id=recorded.stream_id, lane=recorded.lane, version_before=recorded.version - 1
            )
            for row in reservation.rows_of((event,), before=before, stream_id=recorded.stream_id, lane=recorded.lane):
                self._reserve(row)

    @property
    def instance(self) -> Rows:
        return [instance.row_of(state, lane=lane) for lane, state in self._states.values()]

    @property
    def reservation(self) -> Rows:
        return list(self._reservations.values())

    def _reserve(self, row: dict[str, Any]) -> None:
        key = (row["kind"], row["value"], row["id"])
        held = self._reservations.get(key)
        reserved_at = row["reserved_at"] or row["released_at"] if held is None else held["reserved_at"]
        self._reservations[key] = {**row, "reserved_at": reserved_at}
