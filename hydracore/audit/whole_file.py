"""A file that is there as a whole or not at all, however long it takes to write and whatever happens meanwhile.

Until then it is a hidden draft beside it, which its writer holds a lock on. What a writer that was killed has left is held by
nobody, and goes when the next one writes into that directory: it may be what nobody may keep for long.

It takes the place of a regular file, or of none. A device or a pipe would be gone for everybody else on the machine.
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
from hydracore.files import naming, sync_folder

#: Ends the names of drafts, and of nothing else.
_DRAFT: Final = ".hydracore-draft"


@contextmanager
def whole_file(path: Path, *, replace: bool) -> Generator[Path]:
    """A new file beside `path`, for its owner alone, that gets its name once the block has ended well, and else is gone.

    It must be written in place, not replaced. Where `path` is a link, it stays one, and what it leads to is written. Raises
    `FileExists` and `NoRegularFile`, at the beginning, and at the end where somebody else was faster; and `OSError`.
    """
    refuse_unfit(path, replace=replace)
    target = path.resolve()
    if not target.parent.is_dir():
        raise NotADirectoryError(f"cannot write {path}: there is no directory {target.parent}")
    _remove_left_over(target.parent)
    descriptor, draft = _begin(target)
    try:
        with naming(path):
            yield draft
            os.fsync(descriptor)
        refuse_unfit(target, replace=replace)
        draft.rename(target)
    finally:
        draft.unlink(missing_ok=True)
        os.close(descriptor)
    sync_folder(target.parent)


def refuse_unfit(path: Path, *, replace: bool) -> None:
    """For whoever has work to do before anything is written. Raises `FileExists`, `NoRegularFile` and `OSError`."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise NoRegularFile(path)
    if not replace:
        raise FileExists(path)


def _begin(path: Path) -> tuple[int, Path]:
    """An empty draft and the descriptor that holds it."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_DRAFT, dir=path.parent)
        # Where a file system knows no locks, nobody tidies up either.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        # Somebody who was tidying up has found it before it was locked.
        os.close(descriptor)


def _remove_left_over(folder: Path) -> None:
    """Remove the drafts that nobody holds, whatever they were to become: a name with a date in it does not come again."""
    for draft in folder.glob(f".*{_DRAFT}"):
        try:
            descriptor = os.open(draft, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # Gone meanwhile, somebody else's, or no file at all.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink(missing_ok=True)
        except OSError:
            continue  # It is being written, or nobody can tell.
        finally:
            os.close(descriptor)
