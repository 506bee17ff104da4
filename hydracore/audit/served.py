"""Finds the read tables to compare: those that are served according to the database. Checks that as well.

Somebody who edits rows can also edit which tables are served. So the database must be consistent about
it, and a table is left out without a finding only where a newer release explains that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from psycopg import Connection

from events.finding import Finding, Note
from events.sql import Statements
from projections import registry
from projections.definition import Followed, Inline, Projection
from projections.tables import LIVE

_SQL = Statements("hydracore.audit", "served.sql")
_SAID = _SQL["said"]
_COLUMNS = _SQL["columns"]

_Known = tuple[tuple[str, tuple[tuple[int, Projection], ...]], ...]
"""Projections by name, and by version."""

#: The version that a projection begins with.
FIRST_VERSION = 1


class Served(NamedTuple):
    """Projections in the served version whose tables can be compared; and findings and notes on all others."""

    inline: list[Inline]
    followed: list[Followed]
    findings: list[Finding]
    notes: list[Note]


class _Said(NamedTuple):
    """A row of the table `projection`.

    `agrees`: whether the live build has that version. `is_built`: whether a rebuild made it.
    """

    name: str
    version: int | None
    agrees: bool
    is_built: bool


def served(connection: Connection) -> Served:
    """The projections that are served at this moment."""
    known = tuple((name, tuple(versions.items())) for name, versions in registry.all_versions().items())
    tables = [table.name for _, versions in known for _, one in versions for table in one.tables]
    # A swap may come at any time.
    with connection.transaction():
        said = tuple(_Said(*row) for row in connection.execute(_SAID).fetchall())
        columns = connection.execute(_COLUMNS, {"schema": LIVE, "tables": tables}).fetchall()
    return _sorted(known, said, tuple((table, tuple(names)) for table, names in columns))


@lru_cache(1)
def _sorted(known: _Known, said: tuple[_Said, ...], columns: tuple[tuple[str, tuple[str, ...]], ...]) -> Served:
    """Cached, because it is called for each lane, nearly always with the same arguments."""
    versions, there = {name: dict(of_name) for name, of_name in known}, dict(columns)
    found = Served([], [], [], [])
    for row in said:
        of_name = versions.get(row.name, {})
        _take(found, _doubts(row, of_name))
        projection = None if row.version is None else of_name.get(row.version)
        if projection is not None:
            _sort_in(found, projection, there)
    for name in sorted(versions.keys() - {row.name for row in said}):
        _take(found, _not_served(versions[name][max(versions[name])], there))
    return found


def _take(found: Served, said: Finding | Note | None) -> None:
    if isinstance(said, Finding):
        found.findings.append(said)
    elif said is not None:
        found.notes.append(said)


def _doubts(row: _Said, known: Mapping[int, Projection]) -> Finding | Note | None:
    """What is wrong with a served version, or was not compared for it. `known`: the versions that this code has."""
    says = f"The table projection says that {row.name} is served in version {row.version}"
    if not row.agrees:
        what = f"{says}, but projection_generation has no such live generation"
    elif row.version is None or row.version < FIRST_VERSION:
        what = f"{says}, but the first version is {FIRST_VERSION}"
    elif row.version in known:
        return None
    elif known and row.version > max(known) and not row.is_built:
        what = f"{says}, which this release does not have and which was never built"
    else:
        return Note(f"{row.name} is served in a version that this release does not have: not compared")
    if row.version not in known:
        what = f"{what}: not compared"
    return Finding(kind="projection_wrong", what=what, table="projection")


def _sort_in(found: Served, projection: Projection, there: Mapping[str, tuple[str, ...]]) -> None:
    lacking = list(_lacking(projection, there))
    if lacking:
        found.findings.extend(lacking)
    elif isinstance(projection, Inline):
        found.inline.append(projection)
    else:
        found.followed.append(projection)


def _lacking(projection: Projection, there: Mapping[str, tuple[str, ...]]) -> Iterator[Finding]:
    for table in projection.tables:
        if table.name not in there:
            what = f"The table is missing: nothing of {projection.name} was compared"
            yield Finding(kind="table_missing", what=what, table=table.name)
        elif gone := [name for name in table.columns if name not in there[table.name]]:
            what = f"The table has no {', '.join(gone)}, or they have another type: nothing of {projection.name} was compared"
            yield Finding(kind="column_missing", what=what, table=table.name)


def _not_served(projection: Projection, there: Mapping[str, tuple[str, ...]]) -> Finding | Note:
    """About a projection that is not served: a finding if its tables exist, a note if it was never built."""
    if any(table.name in there for table in projection.tables):
        what = f"The table projection has no row of {projection.name}, although its rows are served: they were not compared"
        return Finding(kind="projection_missing", what=what, table="projection")
    return Note(f"{projection.name} was never built here: not compared")
