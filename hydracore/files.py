"""Small files that are either the old one or the new one, never half of it, also after a crash of the machine."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: What a full or broken disk says.
DISK_TROUBLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def write_atomic(path: Path, content: bytes, *, durable: bool = True, draft: Path | None = None) -> None:
    """Replace `path` (readable by its owner alone) as a whole: whoever reads sees the old or the new content.

    With `durable` that holds for a crash of the machine too, and the new content is on the disk when this returns. A file that
    only means something while its processes live need not wait for the disk, which can take seconds when it is busy. `draft`, in
    the same folder, is where the content is written first; each process has its own unless told. Raises `OSError`.
    """
    draft = draft or path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    draft.replace(path)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Where the disk takes no more in the block, say of which file: a file that is open tells no name. Raises `OSError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_TROUBLE or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def disk_said(error: OSError) -> str:
    """What a disk says, of which file: without a name (see `naming`) it is what standard output was sent to."""
    if error.filename is None and error.errno in DISK_TROUBLE:
        return f"standard output: {error.strerror}"
    return str(error)
