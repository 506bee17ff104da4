"""Makes an SQLite file refuse one kind of statement, as on a full disk."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path


@contextmanager
def refusing_statements(path: Path, what: str) -> Iterator[None]:
    """`what` (such as `INSERT ON entry`) fails meanwhile, for every connection, with an `OperationalError`."""
    with closing(sqlite3.connect(path)) as db:
        # Text that is no JSON makes an error of that kind.
        db.execute(f"CREATE TRIGGER refusal BEFORE {what} BEGIN SELECT json('the disk is full'); END")
        try:
            yield
        finally:
            db.execute("DROP TRIGGER refusal")
