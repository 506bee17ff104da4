"""Whether a verification can read what it verifies: the log's own tables, with the columns and types that they were made with.

Somebody with the owner's rights may have changed them. The statements of a verification would fail then, or find events
missing that are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from psycopg import Connection

from events.sql import Statements
from events.verification_findings import Finding
from projections.tables import LIVE

_MISSING = Statements("hydracore.audit", "schema_check.sql")["missing"]

#: What follows from each finding.
_SO: Final = "the log cannot be read, and nothing else was verified"


def schema_findings(connection: Connection, *, replay: bool) -> Iterator[Finding]:
    """What has to be restored before anything can be verified. `replay`: whether the read tables are compared, too."""
    for table, is_there, lacking in connection.execute(_MISSING, {"schema": LIVE, "replay": replay}):
        if is_there:
            what = f"Columns are missing or have another type ({', '.join(lacking)}): {_SO}"
            yield Finding(kind="column_missing", what=what, table=table)
        else:
            yield Finding(kind="table_missing", what=f"{table} is missing: {_SO}", table=table)
