"""The agent as a process: logs to stdout as JSON lines, ends on a signal, says by its exit code how it ended.

0  stopped by SIGTERM, SIGINT or SIGHUP, or retired by the control plane (now or before)
1  a bug, or a disk that is full or failing at the start; worth a restart
2  the boot file is missing or bad     3  another agent runs on this root     4  the state directory is damaged
"""

from __future__ import annotations

import sys
from pathlib import Path

import structlog

from hydracore import logs
from hydracore.agent.agent import Agent
from hydracore.agent.boot_file import read_boot_file
from hydracore.agent.errors import DiskWriteFailed, StartRefused
from hydracore.agent.state import STATE_DIR
from hydracore.gc_tuning import freeze_and_collect_less_often
from hydracore.signals import run_until_signal

_log = structlog.get_logger(__name__)


def run(*, root: Path) -> int:
    """Run the agent of `root` until it is stopped or retired. Returns the exit code."""
    logs.configure("info", stream=sys.stdout)
    try:
        _look_for_boot_file(root)
        freeze_and_collect_less_often()
        if not run_until_signal(Agent(root).run()):
            _log.info("agent_stopped")
    except StartRefused as refusal:
        sys.stderr.write(f"hydracore agent: {refusal}\n")
        return refusal.exit_code
    except DiskWriteFailed as refusal:
        # Of a start: a running agent waits for room. The next start may find some.
        sys.stderr.write(f"hydracore agent: {refusal}\n")
        return 1
    except Exception:  # noqa: BLE001 - whatever it is belongs into the log, and the exit code says so
        _log.exception("agent_failed")
        return 1
    return 0


def _look_for_boot_file(root: Path) -> None:
    """Raise `BootFileInvalid` if there is no boot file, before a state directory is created.

    Then probably somebody tries the command on a machine of their own. If there is a state directory,
    `Agent` looks at that first: the agent may be retired, or be running already.
    """
    if not (root / STATE_DIR).exists():
        read_boot_file(root)
