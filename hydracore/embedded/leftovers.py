"""Processes that outlived the supervisor that started them: known by what they have inherited, ended by the next one on the same home.

Nothing is written down about them: that could be prevented by a full disk, come too late for a kill, or be made wrong by a clock that is
put right. Instead each part is given a mark in its environment, which whatever it starts inherits and which the kernel keeps.
"""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import psutil

#: The variable that a part's mark is in.
VARIABLE: Final = "HYDRACORE_PART"
LEFTOVER_S_MAX: Final = 4.0


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Whose part a process is, or of which part it comes."""

    name: str
    #: Asks the part's main process to end.
    stop_signal: signal.Signals
    #: Device and number of the home's directory: the same where it is moved, and another one in a copy.
    home: tuple[int, int]

    def environ(self) -> dict[str, str]:
        return {VARIABLE: msgspec.json.encode(self).decode()}


def place_of(home: Path) -> tuple[int, int]:
    """As marks have it. A home that is moved to another device gets a new one: nothing of it runs there then."""
    status = home.stat()
    return status.st_dev, status.st_ino


def stop_leftovers(home: Path, *, seconds_max: float = LEFTOVER_S_MAX) -> list[str]:
    """End every process that is marked as this home's and may be looked at by us; the names of their parts, for a message.

    Call it with the home held: nobody else's parts run there then. We ourselves and those who started us are spared, whatever is in
    our environment.
    """
    place = place_of(home)
    spared = {os.getpid(), *(each.pid for each in psutil.Process().parents())}
    marks = {process: _mark_of(process) for process in psutil.process_iter() if process.pid not in spared}
    found = {process: mark for process, mark in marks.items() if mark is not None and mark.home == place}
    # What a main process has started is its own to end; the supervisor has asked none of that either.
    mains = {process: mark.stop_signal for process, mark in found.items() if _leads(process)}
    end_processes(mains, seconds_max=seconds_max)
    for process in mains:
        kill_group(process.pid)
    # Those who have left their group, or whose main process was killed before.
    end_processes(dict.fromkeys(found.keys() - mains.keys(), signal.SIGKILL), seconds_max=seconds_max)
    return sorted({mark.name for mark in found.values()})


def end_processes(processes: Mapping[psutil.Process, signal.Signals], *, seconds_max: float) -> None:
    """Ask each process to end by its signal, and kill those that are still there after `seconds_max`."""
    for process, stop_signal in processes.items():
        with suppress(psutil.NoSuchProcess):
            process.send_signal(stop_signal)
    _, alive = psutil.wait_procs(list(processes), timeout=seconds_max)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=seconds_max)


def kill_group(leader_pid: int) -> None:
    """Kill what is left of a part's process group once its leader has ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)


def _mark_of(process: psutil.Process) -> Mark | None:
    """`None` where there is none, where it is nothing of ours, and where the process is not ours to look at."""
    try:
        return msgspec.json.decode(process.environ().get(VARIABLE, ""), type=Mark)
    except (psutil.Error, ValueError):
        return None


def _leads(process: psutil.Process) -> bool:
    """Every part's main process leads a group of its own."""
    try:
        return os.getpgid(process.pid) == process.pid
    except ProcessLookupError:
        return False
