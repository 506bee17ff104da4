"""Whom PostgreSQL runs as when we are root: it refuses root, and a home below /root is closed to everybody else."""

import asyncio
import grp
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypedDict

from hydracore.embedded.errors import NoServiceAccount
from hydracore.embedded.leftovers import kill_group

#: The account that is made for PostgreSQL, and the one that every system has.
SERVICE_ACCOUNT: Final = "hydracore-postgres"
FALLBACK_ACCOUNT: Final = "nobody"

#: Ways to make it, by tool: shadow's useradd, then BusyBox's adduser (Alpine has no useradd).
CREATE_COMMANDS: Final = (
    (
        "useradd",
        "--system",
        "--no-create-home",
        "--home-dir",
        "/nonexistent",
        "--shell",
        "/usr/sbin/nologin",
        SERVICE_ACCOUNT,
    ),
    ("adduser", "-S", "-D", "-H", "-h", "/nonexistent", "-s", "/sbin/nologin", SERVICE_ACCOUNT),
)
COMMAND_S_MAX: Final = 10


class Switch(TypedDict, total=False):
    """How `subprocess` is told whose process a new one is."""

    user: int
    group: int
    extra_groups: list[int]


class ProcessContext(Switch):
    """The same, and where it runs: in `/`, with none of our environment, in a session that Ctrl-C in our terminal does not reach."""

    cwd: str
    env: dict[str, str]
    start_new_session: bool


@dataclass(frozen=True, kw_only=True)
class Account:
    """A user and group to switch a child process to."""

    uid: int
    gid: int

    @classmethod
    def owner_of(cls, path: Path) -> Self:
        status = path.stat()
        return cls(uid=status.st_uid, gid=status.st_gid)

    def can_enter(self, directory: Path) -> bool:
        """Whether this account can pass through every parent of `directory` and into it. Asked of the kernel, which knows all."""
        command = ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(directory)]
        return self.run(command).returncode == 0

    def can_run(self, program: Path) -> bool:
        """Whether this account can start `program` (which has a `--version`) with its libraries."""
        try:
            return self.run([str(program), "--version"]).returncode == 0
        except PermissionError:
            return False

    def run(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        """Run a short command as this account."""
        return subprocess.run(  # noqa: S603 - our own commands
            command, input=b"", capture_output=True, check=False, timeout=COMMAND_S_MAX, **self._context()
        )

    async def run_long(self, command: list[str], *, given: bytes, seconds_max: float) -> tuple[int, bytes]:
        """Run a command as this account: its exit status and its standard error. Raises `TimeoutError`.

        Where it takes too long, or we are cancelled, it is killed with all its children.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            **self._context(),
        )
        try:
            async with asyncio.timeout(seconds_max):
                _, complaint = await process.communicate(given)
        finally:
            kill_group(process.pid)
            status = await process.wait()
        return status, complaint

    def switch(self) -> Switch:
        """The arguments that make a new process this account's; none when it is us already."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def _context(self) -> ProcessContext:
        environ = {"LC_ALL": "C", "PATH": os.defpath}
        return {"cwd": "/", "env": environ, "start_new_session": True, **self.switch()}


def current_account() -> Account:
    return Account(uid=os.geteuid(), gid=os.getegid())


def service_account() -> Account:
    """An unprivileged account: ours unless we are root, else one made for the purpose. Raises `NoServiceAccount`."""
    if os.geteuid() != 0:
        return current_account()
    entry = _find(SERVICE_ACCOUNT)
    for command in CREATE_COMMANDS:
        if entry is None and shutil.which(command[0]):
            # Two homes may start at the same moment: who comes second fails here and finds the account below.
            subprocess.run(  # noqa: S603 - constants
                command, capture_output=True, check=False, timeout=COMMAND_S_MAX, start_new_session=True
            )
            entry = _find(SERVICE_ACCOUNT)
    entry = entry or _find(FALLBACK_ACCOUNT)
    if entry is None:
        raise NoServiceAccount
    return Account(uid=entry.pw_uid, gid=_group_of(entry))


def _find(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _group_of(entry: pwd.struct_passwd) -> int:
    """The account's own group; `adduser -S` may leave it in one that does not exist."""
    try:
        return grp.getgrgid(entry.pw_gid).gr_gid
    except KeyError:
        return entry.pw_uid
