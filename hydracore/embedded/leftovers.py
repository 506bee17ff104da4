"""Ends processes that outlived their supervisor. The next supervisor of the same home calls this.

Each part is given a mark in its environment. All processes that it starts inherit the mark,
and the kernel keeps it. A file with pids would be less reliable: a full disk could prevent
it, a kill could come before it is written, and setting the clock could make its times wrong.
"""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import psutil

#: The environment variable that holds a part's mark.
MARK_VARIABLE: Final = "HYDRACORE_PART"
LEFTOVER_S_MAX: Final = 4.0


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Says that a process is a part, or was started by a part, of a home."""

    #: The part's name, for whoever looks at a process's environment.
    name: str
    #: Asks the part's main process to end.
    stop_signal: signal.Signals
    #: Device and inode number of the home's directory. They stay when it is moved, and differ in a copy.
    home: tuple[int, int]

    def environ(self) -> dict[str, str]:
        return {MARK_VARIABLE: msgspec.json.encode(self).decode()}


def device_and_inode(home: Path) -> tuple[int, int]:
    """Device and inode number of a home.

    On another device these change, but nothing runs in a home that is moved there.
    """
    status = home.stat()
    return status.st_dev, status.st_ino


def stop_leftovers(home: Path, *, seconds_max: float = LEFTOVER_S_MAX) -> None:
    """End every process with a mark of this home.

    Call it with the home locked, so that no other supervisor's parts run there. Processes whose environment we
    may not read are not found. Our own process and its ancestors are spared, even with a mark.
    """
    device_inode = device_and_inode(home)
    spared = {os.getpid(), *(each.pid for each in psutil.Process().parents())}
    marks = {process: _mark_of(process) for process in psutil.process_iter() if process.pid not in spared}
    found = {process: mark for process, mark in marks.items() if mark is not None and mark.home == device_inode}
    # Only main processes are asked, as by the supervisor: each of them ends what it has started.
    mains = {process: mark.stop_signal for process, mark in found.items() if _is_group_leader(process)}
    end_processes(mains, seconds_max=seconds_max)
    for process in mains:
        kill_group(process.pid)
    # The rest has left its process group, or its main process was killed before.
    end_processes(dict.fromkeys(found.keys() - mains.keys(), signal.SIGKILL), seconds_max=seconds_max)


def end_processes(processes: Mapping[psutil.Process, signal.Signals], *, seconds_max: float) -> None:
    """Send each process its signal, and kill those that still run after `seconds_max`."""
    for process, stop_signal in processes.items():
        with suppress(psutil.NoSuchProcess):
            process.send_signal(stop_signal)
    _, alive = psutil.wait_procs(list(processes), timeout=seconds_max)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=seconds_max)


def kill_group(leader_pid: int) -> None:
    """Kill all that is left of the process group of `leader_pid`."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)


def _mark_of(process: psutil.Process) -> Mark | None:
    """The mark of a process.

    `None`: it has none, or the variable holds something else, or we may not read its environment.
    """
    try:
        return msgspec.json.decode(process.environ().get(MARK_VARIABLE, ""), type=Mark)
    except (psutil.Error, ValueError):
        return None


def _is_group_leader(process: psutil.Process) -> bool:
    """Whether the process leads its process group, as the main process of every part does."""
    try:
        return os.getpgid(process.pid) == process.pid
    except ProcessLookupError:
        return False
