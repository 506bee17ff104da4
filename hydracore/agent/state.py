"""The agent's state directory: files that are replaced as a whole, a lock for one process, the mark of retirement."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from hydracore.agent.errors import AlreadyRunning, DiskWriteFailed
from hydracore.files import write_atomic

_log = structlog.get_logger(__name__)

#: Below the agent's root.
STATE_DIR = Path("var/lib/hydracore-agent")

#: Bytes that are written to see whether the disk has room again: more than a file system stores
#: without a block for them.
_PROBE_BYTES = 4096

_LOCK = "lock"
_PROBE = "probe"
_RETIRED = "retired"
_PRIVATE_DIR = 0o700
_PRIVATE_FILE = 0o600


class StateDir:
    """ROOT/var/lib/hydracore-agent, for the agent's user alone. It is made when absent."""

    def __init__(self, root: Path) -> None:
        """Raises `DiskWriteFailed`."""
        self.path = root / STATE_DIR
        self._write_failure: DiskWriteFailed | None = None
        with self.translating_write_errors():
            self.path.mkdir(parents=True, exist_ok=True)
            # mkdir's own mode is subject to the umask, and the directory may have come with the image.
            self.path.chmod(_PRIVATE_DIR)

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None when there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Replace a file so that a crash or power cut at any moment leaves the old content or the new, never a part.

        When this returns, the new content is on the disk: the data before the rename, and the rename itself. Raises
        `DiskWriteFailed`.
        """
        with self.translating_write_errors():
            draft = self.path / f"{name}.new"
            # A draft that a crash left behind may have a wider mode; a fresh inode cannot.
            draft.unlink(missing_ok=True)
            write_atomic(self.path / name, content, draft=draft)

    @contextmanager
    def translating_write_errors(self) -> Generator[None]:
        """Around all writes in the directory: raises `DiskWriteFailed` in place of errors of the system and of SQLite."""
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            refusal = DiskWriteFailed(str(getattr(error, "strerror", None) or error))
            if self._write_failure is None:
                _log.error("disk_refuses", what=refusal.what)
            self._write_failure = refusal
            raise refusal from error

    def find_write_failure(self) -> DiskWriteFailed | None:
        """The latest failure of a write, or None. After a failure this tries to write, and forgets it if that works."""
        if self._write_failure is not None:
            with suppress(DiskWriteFailed):
                self.write(_PROBE, bytes(_PROBE_BYTES))
                (self.path / _PROBE).unlink()
                self._write_failure = None
                _log.info("disk_takes_again")
        return self._write_failure

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the directory for this process. Raises `AlreadyRunning` at once when another one does, and `DiskWriteFailed`.

        The kernel frees the lock with the process, however it ends, so there is no stale lock to clean up.
        """
        path = self.path / _LOCK
        with self.translating_write_errors():
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, _PRIVATE_FILE)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRunning(path) from None
            yield
        finally:
            os.close(descriptor)

    @property
    def retired(self) -> bool:
        """Whether the control plane has told this agent to stop for good."""
        return (self.path / _RETIRED).exists()

    def retire(self) -> None:
        self.write(_RETIRED, b"")
