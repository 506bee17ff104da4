"""Writes small files atomically: also after a crash of the machine, a file has the old or the new content."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: The error numbers of a full or broken disk.
DISK_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def write_atomic(path: Path, content: bytes, *, durable: bool = True, draft: Path | None = None) -> None:
    """Replace `path` (readable by its owner only) atomically: readers see the old or the new content.

    `durable`: that also holds after a crash of the machine, and the new content is on disk when this returns. Not
    needed for a file that only matters while its processes live; syncing can take seconds on a busy disk. `draft`:
    the file in the same folder that is written first and then renamed, by default one per process. Raises `OSError`
    with the name of `path` or the draft, and leaves no draft then.
    """
    draft = draft or path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with disk_errors_named(path), os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to disk. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors_named(path: Path) -> Generator[None]:
    """Add `path` to a disk's `OSError` that is raised in the block: writes to an open file raise it without a name."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRNOS or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def describe_disk_error(error: OSError) -> str:
    """The text of an error with its file. A disk's error without a name (see `disk_errors_named`) came from standard output."""
    if error.filename is None and error.errno in DISK_ERRNOS:
        return f"cannot write to standard output: {error.strerror}"
    return str(error)
