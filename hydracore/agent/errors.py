"""The agent's errors: those that stop it, and those that it has to handle.

AgentError
├── StartRefused              this start cannot work; `exit_code` says which kind
│   ├── BootFileInvalid       2  etc/hydracore/agent.json is missing or bad
│   ├── AlreadyRunning        3  another agent process has this root
│   └── StateDamaged          4  a file of the state directory cannot be read
├── RuntimeFailed             the runtime did not start, or stopped by itself
├── SpoolFull                 too many callbacks wait for the control plane
├── DiskWriteFailed           the disk is full or failing; nothing was stored
├── ControlPlaneError         see `control_plane`
├── ChatError                 see `chats`
├── ModelCallError            see `expressclaw.model_client`
└── TelegramError             see `expressclaw.telegram_api`
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class AgentError(Exception):
    """Root of the agent's errors."""


class StartRefused(AgentError):
    exit_code: ClassVar[int]


class BootFileInvalid(StartRefused):
    exit_code: ClassVar[int] = 2

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class AlreadyRunning(StartRefused):
    exit_code: ClassVar[int] = 3

    def __init__(self, lock: Path) -> None:
        super().__init__(f"another agent runs on this root (it holds {lock})")
        self.lock = lock


class StateDamaged(StartRefused):
    exit_code: ClassVar[int] = 4

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is damaged, and the agent does not replace it by itself")
        self.path = path


class RuntimeFailed(AgentError):
    """`code` is stable and short, for programs; `message` is one line for people, without secrets."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class DiskWriteFailed(AgentError):
    """`what`: the message of the operating system or of SQLite."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the disk refuses writes: {what}")
        self.what = what


class SpoolFull(AgentError):
    """The callback was not spooled and got no number."""
