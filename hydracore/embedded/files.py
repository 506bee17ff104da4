"""Small files that are either the old one or the new one, never half of it."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hydracore.embedded.errors import HomeInUse


def write_atomic(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace `path` (readable by its owner alone) as a whole: whoever reads sees the old or the new content.

    With `durable` that holds for a crash of the machine too. A file that only means something while its processes live need not
    wait for the disk, which can take seconds when it is busy.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    draft.replace(path)


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """As `write_atomic`, with a JSON document that a person can read."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n", durable=durable)


@contextmanager
def held(lock: Path) -> Generator[None]:
    """Hold the directory of the file `lock` alone; the kernel lets go when the holder ends, however it ends. Raises `HomeInUse`."""
    # The directory may be another account's, who could have the name lead elsewhere.
    with os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().strip()
            raise HomeInUse(lock.parent, int(holder) if holder.isdigit() else None) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def tail(path: Path, *, lines: int = 20, bytes_max: int = 16_384) -> str:
    """The end of a log file, for an error message; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - bytes_max))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
