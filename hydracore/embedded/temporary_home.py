"""Temporary homes, below the directory for temporary files.

They are deleted with their data, also where that is outside of the home.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from hydracore.embedded import agents
from hydracore.embedded.errors import EmbeddedError, HomeInUse
from hydracore.embedded.files import lock_directory
from hydracore.embedded.home import HOME_MODE, LOCK, Home
from hydracore.embedded.leftovers import stop_leftovers
from hydracore.embedded.postgres import STATE_DIR, end_servers

#: The name of the home in the temporary directory that is made for it.
NAME: Final = "home"


@contextmanager
def temporary_home(prefix: str) -> Generator[Home]:
    """A new home in a temporary directory whose name begins with `prefix`.

    At the end, the processes that run there are ended, and the home is deleted. This is also done at the
    beginning, with earlier homes of this user whose process was killed. Raises `HomeUnusable` and `OSError`.
    """
    for home in _abandoned_homes(prefix):
        # A problem with an old home must not prevent a new one.
        with suppress(EmbeddedError):
            _discard(home)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        folder.chmod(HOME_MODE)
        home = Home(folder / NAME)
    except (EmbeddedError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        yield home
    finally:
        _discard(home)


def _abandoned_homes(prefix: str) -> Iterator[Home]:
    """This user's temporary homes that have been locked before. Some may still be in use: `_discard` finds out."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(FileNotFoundError, EmbeddedError):
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and Home.was_locked(folder / NAME):
                yield Home(folder / NAME)


def _discard(home: Home) -> None:
    """End what runs in a home and delete it, unless another process holds it."""
    with suppress(HomeInUse, FileNotFoundError), home.lock():
        stop_leftovers(home.path)
        end_servers(home.postgres / "data")
        agents.end_below(home.cloudsim)
        _discard_fallback_data(STATE_DIR / home.secrets().home_id)
        shutil.rmtree(home.path.parent, ignore_errors=True)


def _discard_fallback_data(data: Path) -> None:
    """Delete data outside of the home, unless a copy of the home is in use and uses it."""
    with suppress(HomeInUse, FileNotFoundError), lock_directory(data / LOCK):
        end_servers(data / "data")
        shutil.rmtree(data, ignore_errors=True)
