"""Ends agents that cloudsim has booted.

They are detached, so that they survive cloudsim, and are found by their root directory.
"""

import signal
from pathlib import Path
from typing import Final

import psutil

from hydracore.embedded.leftovers import end_processes

GRACE_S: Final = 1.0


def end_below(directory: Path) -> None:
    """End every agent whose root is below `directory`."""
    found = [process for process in psutil.process_iter() if _is_agent_below(process, directory)]
    end_processes(dict.fromkeys(found, signal.SIGTERM), seconds_max=GRACE_S)


def _is_agent_below(process: psutil.Process, directory: Path) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return "hydracore.agent" in command and any(Path(word).is_relative_to(directory) for word in command)
