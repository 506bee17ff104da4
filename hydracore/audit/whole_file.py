"""A file that is there as a whole or not at all, however long it takes to write and whatever happens meanwhile."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hydracore.audit.errors import FileExists
from hydracore.audit.lines_file import sync_folder


@contextmanager
def whole_file(path: Path, *, replace: bool) -> Generator[Path]:
    """A new file beside `path`, for its owner alone, that gets its name once the block has ended well, and else is gone.

    Raises `FileExists`, at the beginning, and at the end where somebody else was faster; and `OSError`.
    """
    if path.exists() and not replace:
        raise FileExists(path)
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: there is no directory {path.parent}")
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    draft = Path(name)
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        if path.exists() and not replace:
            raise FileExists(path)
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)
