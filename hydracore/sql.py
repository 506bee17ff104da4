"""SQL kept as SQL, for SQLite: files of named statements beside the code that owns them.

What runs on a VPS, and what is simulated, may not know `events`, whose `Statements` are the same for PostgreSQL.
"""

from __future__ import annotations

from pathlib import Path


def named_blocks(path: Path) -> dict[str, str]:
    """The statements of an .sql file by the names in its `-- name:` lines."""
    blocks = (block.partition("\n") for block in path.read_text(encoding="utf-8").split("-- name: ")[1:])
    return {name.strip(): body.strip() for name, _, body in blocks}
