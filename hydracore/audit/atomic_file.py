"""Writes a file atomically: completely or not at all, even if the process is killed meanwhile.

The data goes to a hidden draft beside the file, which its writer locks. The draft of a writer that was killed is not
locked any more, and is removed by the next writer in that directory: it may hold data that must not be kept for long.

Only a regular file is replaced. A device or a pipe would be gone for everybody else on the machine.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from hydracore.audit.errors import FileExists, NoRegularFile
from hydracore.files import disk_errors_named, sync_folder

#: The ending of the names of drafts, and of nothing else.
_DRAFT: Final = ".hydracore-draft"


@contextmanager
def atomic_file(path: Path, *, replace: bool) -> Generator[Path]:
    """A draft beside `path`, for its owner alone. It becomes `path` once the block succeeds, or is removed.

    The draft must be written in place, not replaced. Where `path` is a symbolic link, its target is
    written. Raises `FileExists` and `NoRegularFile` at the beginning, and at the end if another process
    has written `path` meanwhile; and `OSError`.
    """
    check_replaceable(path, replace=replace)
    target = path.resolve()
    if not target.parent.is_dir():
        raise NotADirectoryError(f"cannot write {path}: there is no directory {target.parent}")
    _remove_stale_drafts(target.parent)
    descriptor, draft = _create_draft(target)
    try:
        with disk_errors_named(path):
            yield draft
            os.fsync(descriptor)
        check_replaceable(target, replace=replace)
        draft.rename(target)
    finally:
        draft.unlink(missing_ok=True)
        os.close(descriptor)
    sync_folder(target.parent)


def check_replaceable(path: Path, *, replace: bool) -> None:
    """Check whether `path` may be written or replaced. Callers do so early, before long work.

    Raises `FileExists`, `NoRegularFile` and `OSError`.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise NoRegularFile(path)
    if not replace:
        raise FileExists(path)


def _create_draft(path: Path) -> tuple[int, Path]:
    """The path of an empty draft, after a descriptor that holds its lock."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_DRAFT, dir=path.parent)
        # On a file system without locks, no drafts are removed either.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        # Another writer has removed it before it was locked.
        os.close(descriptor)


def _remove_stale_drafts(folder: Path) -> None:
    """Remove all drafts that are not locked, of whatever file: one with a date in its name is never written again."""
    for draft in folder.glob(f".*{_DRAFT}"):
        try:
            descriptor = os.open(draft, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # Gone meanwhile, another user's, or not a file.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink(missing_ok=True)
        except OSError:
            continue  # It is being written, or the file system has no locks.
        finally:
            os.close(descriptor)
