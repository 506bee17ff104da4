"""The files of a home: JSON documents that people can read, the lock that holds it, and the ends of logs."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hydracore.embedded.errors import HomeInUse
from hydracore.files import disk_errors_named, write_atomic


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Write `value` as indented JSON, by `write_atomic`."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n", durable=durable)


@contextmanager
def lock_directory(lock: Path) -> Generator[None]:
    """Lock the directory of the file `lock` exclusively. Raises `HomeInUse`, and `OSError` where its disk is full.

    The kernel releases the lock when its holder ends, however that ends.
    """
    # Another account may own the directory and make the name a symbolic link: it is not followed.
    with os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().strip()
            raise HomeInUse(lock.parent, int(holder) if holder.isdigit() else None) from None
        with disk_errors_named(lock):
            file.truncate(0)
            # Not through the file's buffer, which would be written once more, and fail again, as the file is closed.
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        yield


def tail(path: Path, *, lines: int = 20, bytes_max: int = 16_384) -> str:
    """The last lines of a log file, for an error message; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - bytes_max))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
