"""Finds the projections to compare, those that are served according to the database, and checks what it says.

Somebody who edits rows can also edit which tables are served. So the tables `projection` and
`projection_generation` must agree. A projection is left out without a finding only if a newer release serves
it, or if it was never built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from psycopg import Connection

from events.sql import Statements
from events.verification_findings import Finding, Note
from projections import registry
from projections.definition import Followed, Inline, Projection
from projections.tables import LIVE

_SQL = Statements("hydracore.audit", "served_projections.sql")
_PROJECTION_ROWS = _SQL["projection_rows"]
_COLUMNS = _SQL["columns"]

_KnownVersions = tuple[tuple[str, tuple[tuple[int, Projection], ...]], ...]
"""Projections by name, and by version."""

#: The version that a projection begins with.
FIRST_VERSION = 1


class ServedProjections(NamedTuple):
    """Projections in the served version whose tables can be compared; and findings and notes on all others."""

    inline: list[Inline]
    followed: list[Followed]
    findings: list[Finding]
    notes: list[Note]


class _ProjectionRow(NamedTuple):
    """A row of the table `projection`.

    `agrees`: whether the live generation has that version. `is_built`: whether a rebuild made that generation.
    """

    name: str
    version: int | None
    agrees: bool
    is_built: bool


def find_served_projections(connection: Connection) -> ServedProjections:
    """The projections that are served at this moment, checked."""
    known = tuple((name, tuple(versions.items())) for name, versions in registry.all_versions().items())
    tables = [table.name for _, versions in known for _, one in versions for table in one.tables]
    # In one snapshot: a rebuild may swap tables at any time.
    with connection.transaction():
        rows = tuple(_ProjectionRow(*row) for row in connection.execute(_PROJECTION_ROWS).fetchall())
        columns = connection.execute(_COLUMNS, {"schema": LIVE, "tables": tables}).fetchall()
    return _checked(known, rows, tuple((table, tuple(names)) for table, names in columns))


@lru_cache(1)
def _checked(
    known: _KnownVersions, rows: tuple[_ProjectionRow, ...], columns: tuple[tuple[str, tuple[str, ...]], ...]
) -> ServedProjections:
    """Cached, because it is called for each lane, nearly always with the same arguments."""
    versions, columns_by_table = {name: dict(of_name) for name, of_name in known}, dict(columns)
    found = ServedProjections([], [], [], [])
    for row in rows:
        known_versions = versions.get(row.name, {})
        _add_problem(found, _check_version(row, known_versions))
        projection = None if row.version is None else known_versions.get(row.version)
        if projection is not None:
            _add_if_comparable(found, projection, columns_by_table)
    for name in sorted(versions.keys() - {row.name for row in rows}):
        _add_problem(found, _report_unserved(versions[name][max(versions[name])], columns_by_table))
    return found


def _add_problem(found: ServedProjections, problem: Finding | Note | None) -> None:
    if isinstance(problem, Finding):
        found.findings.append(problem)
    elif problem is not None:
        found.notes.append(problem)


def _check_version(row: _ProjectionRow, known: Mapping[int, Projection]) -> Finding | Note | None:
    """What is wrong with a served version, or was not compared for it. `known`: the versions that this code has."""
    claim = f"The table projection says that {row.name} is served in version {row.version}"
    if not row.agrees:
        what = f"{claim}, but projection_generation has no such live generation"
    elif row.version is None or row.version < FIRST_VERSION:
        what = f"{claim}, but the first version is {FIRST_VERSION}"
    elif row.version in known:
        return None
    elif known and row.version > max(known) and not row.is_built:
        what = f"{claim}, which this release does not have and which was never built"
    else:
        return Note(f"{row.name} is served in a version that this release does not have: not compared")
    if row.version not in known:
        what = f"{what}: not compared"
    return Finding(kind="projection_wrong", what=what, table="projection")


def _add_if_comparable(
    found: ServedProjections, projection: Projection, columns: Mapping[str, tuple[str, ...]]
) -> None:
    missing = list(_missing_tables_and_columns(projection, columns))
    if missing:
        found.findings.extend(missing)
    elif isinstance(projection, Inline):
        found.inline.append(projection)
    else:
        found.followed.append(projection)


def _missing_tables_and_columns(projection: Projection, columns: Mapping[str, tuple[str, ...]]) -> Iterator[Finding]:
    for table in projection.tables:
        if table.name not in columns:
            what = f"The table is missing: nothing of {projection.name} was compared"
            yield Finding(kind="table_missing", what=what, table=table.name)
        elif gone := [name for name in table.columns if name not in columns[table.name]]:
            what = f"The table has no {', '.join(gone)}, or they have another type: nothing of {projection.name} was compared"
            yield Finding(kind="column_missing", what=what, table=table.name)


def _report_unserved(projection: Projection, columns: Mapping[str, tuple[str, ...]]) -> Finding | Note:
    """About a projection that is not served: a finding if its tables exist, a note if it was never built."""
    if any(table.name in columns for table in projection.tables):
        what = f"The table projection has no row of {projection.name}, although its rows are served: they were not compared"
        return Finding(kind="projection_missing", what=what, table="projection")
    return Note(f"{projection.name} was never built here: not compared")
