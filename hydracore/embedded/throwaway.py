"""Homes for once: made below the directory for temporary files, and deleted with the data that lives apart from them."""

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
from hydracore.embedded.files import held
from hydracore.embedded.home import HOME_MODE, LOCK, Home
from hydracore.embedded.leftovers import stop_leftovers
from hydracore.embedded.postgres import STATE, end_servers

#: The home's own name, below the directory that is made for it.
NAME: Final = "home"


@contextmanager
def throwaway_home(prefix: str) -> Generator[Home]:
    """A home below a directory whose name begins with `prefix`; it is deleted at the end, when nothing runs there any more.

    First of all what runs in those of ours whose holder was killed is ended, and they are deleted.
    """
    for home in _left_behind(prefix):
        # Whatever is wrong with one is nothing to whoever wants another.
        with suppress(EmbeddedError):
            _discard(home)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(HOME_MODE)
    home = Home(folder / NAME)
    try:
        yield home
    finally:
        _discard(home)


def _left_behind(prefix: str) -> Iterator[Home]:
    """Homes of ours that somebody has held. Whether somebody still does, locking them tells."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(FileNotFoundError, EmbeddedError):
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and Home.was_held(folder / NAME):
                yield Home(folder / NAME)


def _discard(home: Home) -> None:
    """Delete it for good, unless somebody else is at that, or works there."""
    with suppress(HomeInUse, FileNotFoundError), home.lock():
        stop_leftovers(home.path)
        end_servers(home.postgres / "data")
        agents.end_below(home.cloudsim)
        _discard_apart(STATE / home.secrets().home_id)
        shutil.rmtree(home.path.parent, ignore_errors=True)


def _discard_apart(data: Path) -> None:
    """Delete data that lives apart, unless whoever has a copy of the home works on it."""
    with suppress(HomeInUse, FileNotFoundError), held(data / LOCK):
        end_servers(data / "data")
        shutil.rmtree(data, ignore_errors=True)
