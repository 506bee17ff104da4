"""Whether a verification can read what it verifies: its tables, with the columns and types that they were made with.

Somebody with the owner's rights may have changed them. The statements of a verification would fail then, or find events
missing that are there.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from psycopg import Connection

from events.sql import Statements
from events.verification_findings import Finding
from projections.tables import LIVE

_MISSING = Statements("hydracore.audit", "schema_check.sql")["missing"]

#: What follows from each finding.
_LOG_UNREADABLE: Final = "the log cannot be read, and nothing else was verified"
_NOT_COMPARED: Final = "read tables and snapshots were not compared"


class SchemaFindings(NamedTuple):
    """What has to be restored before the log can be verified at all; and before its read tables and snapshots can be compared."""

    log: list[Finding]
    replay: list[Finding]


def check_schema(connection: Connection, *, replay: bool) -> SchemaFindings:
    """What is missing. `replay`: whether read tables and snapshots are to be compared, too."""
    found = SchemaFindings([], [])
    for table, is_there, lacking, for_replay in connection.execute(_MISSING, {"schema": LIVE, "replay": replay}):
        so = _NOT_COMPARED if for_replay else _LOG_UNREADABLE
        if is_there:
            what = f"Columns are missing or have another type ({', '.join(lacking)}): {so}"
            finding = Finding(kind="column_missing", what=what, table=table)
        else:
            finding = Finding(kind="table_missing", what=f"{table} is missing: {so}", table=table)
        (found.replay if for_replay else found.log).append(finding)
    return found
