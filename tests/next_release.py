"""Projections of a simulated next release: version 2 of an inline and of a followed projection, with one more column each."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from events.exchange import Statement
from events.sql import Statements
from projections.activity import Activity, ActivityFold
from projections.fact import Fact, Read
from projections.instance import InstanceFold, InstanceProjection
from projections.tables import Row, Rows, Table, records


class Edited(Statements):
    """The statements of this release with an edit."""

    def __init__(self, before: Statements, **edits: tuple[bytes, bytes]) -> None:
        self._before = before
        self._edits = edits

    def __getitem__(self, name: str) -> bytes:
        statement = self._before[name]
        for old, new in self._edits.values():
            statement = statement.replace(old, new)
        return statement


class ShoutingFold(InstanceFold):
    def rows(self) -> list[Row]:
        return [(*row, str(row[6]).upper()) for row in super().rows()]


class InstanceV2(InstanceProjection):
    """Knows the status in capitals too."""

    version = 2
    tables = (InstanceProjection.tables[0]._replace(columns=(*InstanceProjection.tables[0].columns, "shout")),)
    ddl = Edited(
        InstanceProjection.ddl, column=(b"deleted_at timestamptz\n", b"deleted_at timestamptz,\n shout text NOT NULL\n")
    )
    statement = (
        InstanceProjection.statement.replace(b"wake_at, deleted_at)\nSELECT", b"wake_at, deleted_at, shout)\nSELECT")
        .replace(b"r.wake_at, r.deleted_at\n", b"r.wake_at, r.deleted_at, upper(r.status)\n")
        .replace(b"status = excluded.status,", b"status = excluded.status, shout = excluded.shout,")
    )

    def begin(self, stream_id: UUID, *, lane: int) -> ShoutingFold:
        return ShoutingFold(stream_id, lane=lane)


class DoubleFold(ActivityFold):
    def rows(self) -> Rows:
        return {name: [(*row[:6], row[6] * 2, *row[7:]) for row in rows] for name, rows in super().rows().items()}


class ActivityV2(Activity):
    """Counts every event twice: another meaning of a column, said so in the table."""

    version = 2
    tables: tuple[Table, ...] = (Activity.tables[0]._replace(changed=("events",)),)

    def begin(self) -> DoubleFold:
        return DoubleFold()

    async def changes(self, _: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        fold = self.begin()
        fold.feed(facts)
        return [Statement(self.ddl["add"], (records(self.tables[0], fold.rows()),))]
