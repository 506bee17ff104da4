"""Processes that outlived the supervisor that started them: written down while it runs, ended by the next one on the same home.

A number alone could by now be somebody else's process; a number with its start time is one process for ever.
"""

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import psutil

from hydracore.embedded.files import write_json

#: How far a start time may seem to move: it is computed from the wall clock, which gets corrected.
CLOCK_S_MAX: Final = 2.0
LEFTOVER_S_MAX: Final = 4.0


class RecordedProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One process as the runtime file keeps it."""

    name: str
    pid: int
    created_at_s: float
    stop_signal: int
    #: Device and number of the file's directory, which a copy of the home does not have. Earlier releases did not write it down.
    place: tuple[int, int] | None = None


def describe(name: str, pid: int, stop_signal: int) -> RecordedProcess | None:
    """The entry of a process that was just started; `None` when it is gone already."""
    try:
        created_at_s = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
    return RecordedProcess(name=name, pid=pid, created_at_s=created_at_s, stop_signal=stop_signal)


def write_runtime(path: Path, started: Iterable[RecordedProcess]) -> None:
    place = _place_of(path)
    write_json(path, [msgspec.structs.replace(each, place=place) for each in started], durable=False)


def stop_leftovers(
    path: Path, *, seconds_max: float = LEFTOVER_S_MAX, tell: Callable[[str], None] | None = None
) -> list[str]:
    """End what the runtime file at `path` names and is still alive; the names of those, for a message.

    In a copy of a home it names what runs in the original, which is none of ours: that is left alone, and `tell` is told.
    """
    try:
        recorded = msgspec.json.decode(path.read_bytes(), type=list[RecordedProcess])
    except (FileNotFoundError, msgspec.DecodeError):
        return []
    alive = {process: entry for entry in recorded if (process := _same_process(entry))}
    others = [entry.name for entry in alive.values() if entry.place not in (None, _place_of(path))]
    if others:
        if tell is not None:
            tell(f"{path} is a copy of another home's: what runs there ({', '.join(others)}) is left alone")
        alive = {}
    end_processes(
        {process: signal.Signals(entry.stop_signal) for process, entry in alive.items()}, seconds_max=seconds_max
    )
    for entry in alive.values():
        # Every part leads a group of its own; what it left in there goes with it.
        kill_group(entry.pid)
    path.unlink(missing_ok=True)
    return [entry.name for entry in alive.values()]


def _place_of(path: Path) -> tuple[int, int]:
    """Stays the same where the home is moved, unless that was to another device: nothing of it runs there then."""
    status = path.parent.stat()
    return status.st_dev, status.st_ino


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


def _same_process(entry: RecordedProcess) -> psutil.Process | None:
    try:
        process = psutil.Process(entry.pid)
        same = (
            abs(process.create_time() - entry.created_at_s) < CLOCK_S_MAX and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return None
    return process if same else None
