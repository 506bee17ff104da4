"""Folds the read tables from the log alone, to compare them with the inline tables."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from events.evolve import evolve
from events.state import Instance
from events.types import AnyEvent
from events.upcast import read
from projections import instance, provision_log, reservation
from tests.log_check import Row


class Replay:
    """Folds rows of the log, each stream's in order, into the rows that the inline projections must have written."""

    def __init__(self) -> None:
        self._states: dict[UUID, tuple[int, Instance]] = {}
        self.provision_log: list[Row] = []
        self._reservations: dict[tuple[str, str, UUID], Row] = {}

    def feed(self, rows: Iterable[Row]) -> None:
        for row in rows:
            stream_id, lane, version = row["stream_id"], row["lane"], row["version"]
            known = self._states.get(stream_id)
            before = None if known is None else known[1]
            event = event_of(row)
            after = evolve(before, event, stream_id=stream_id)
            assert after.version == version, "versions of a stream are dense"
            self._states[stream_id] = (lane, after)
            self.provision_log += provision_log.rows_of(
                (event,), stream_id=stream_id, lane=lane, version_before=version - 1
            )
            for reserved in reservation.rows_of((event,), before=before, stream_id=stream_id, lane=lane):
                self._reserve(reserved)

    @property
    def instance(self) -> list[Row]:
        return [instance.row_of(state, lane=lane) for lane, state in self._states.values()]

    @property
    def reservation(self) -> list[Row]:
        return list(self._reservations.values())

    def _reserve(self, row: Row) -> None:
        key = (row["kind"], row["value"], row["id"])
        held = self._reservations.get(key)
        reserved_at = row["reserved_at"] or row["released_at"] if held is None else held["reserved_at"]
        self._reservations[key] = {**row, "reserved_at": reserved_at}


def event_of(row: Row) -> AnyEvent:
    """What a row of the log says, its payload being the stored text."""
    return read(row["payload"], tag=row["type"], schema_version=row["schema_version"])
