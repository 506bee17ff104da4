"""SQL kept as SQL: files of named statements beside the code that owns them."""

from __future__ import annotations

from pathlib import Path


def named_blocks(path: Path) -> dict[str, str]:
    """The statements of an .sql file by the names in its `-- name:` lines."""
    blocks = (block.partition("\n") for block in path.read_text(encoding="utf-8").split("-- name: ")[1:])
    return {name.strip(): body.strip() for name, _, body in blocks}
