"""The account that PostgreSQL runs as.

When we are root it has to be another account: PostgreSQL refuses to run as root.
Others cannot enter a home below /root.
"""

import asyncio
import grp
import os
import pwd
import shlex
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypedDict

from hydracore.embedded.errors import EmbeddedError, NoServiceAccount
from hydracore.embedded.leftovers import kill_group

#: The account that is created for PostgreSQL, and the one that is used where it cannot be: every system has that.
SERVICE_ACCOUNT: Final = "hydracore-postgres"
FALLBACK_ACCOUNT: Final = "nobody"

#: Commands that create it: shadow's useradd, then BusyBox's adduser (Alpine has no useradd).
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


class UserArguments(TypedDict, total=False):
    """Arguments of `subprocess` that set the user and the groups of a new process."""

    user: int
    group: int
    extra_groups: list[int]


class ProcessArguments(UserArguments):
    """`UserArguments`, and further arguments of `subprocess`.

    The process runs in `/`, with none of our environment, and in a new session, which
    Ctrl-C in our terminal does not reach.
    """

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
        """Whether this account can enter `directory`, through all of its parents.

        It is tried: only the kernel knows all rules.
        """
        command = ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(directory)]
        return self.run(command).returncode == 0

    def can_run(self, program: Path) -> bool:
        """Whether this account can start `program` (which has a `--version`) with its libraries."""
        try:
            return self.run([str(program), "--version"]).returncode == 0
        except PermissionError:
            return False

    def run(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        """Run a short command as this account. Raises `EmbeddedError` if it does not end within `COMMAND_S_MAX`."""
        try:
            return subprocess.run(  # noqa: S603 - our own commands
                command, input=b"", capture_output=True, check=False, timeout=COMMAND_S_MAX, **self._process_arguments()
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedError(f"`{shlex.join(command)}` did not end within {COMMAND_S_MAX:g} s") from None

    async def run_long(self, command: list[str], *, stdin: bytes, seconds_max: float) -> tuple[int, bytes]:
        """Run a command as this account. Returns its exit status and its standard error. Raises `TimeoutError`.

        `stdin` is its standard input. On a timeout or a cancellation the command is
        killed. Whatever is left of its process group is killed in any case.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            **self._process_arguments(),
        )
        try:
            async with asyncio.timeout(seconds_max):
                _, stderr = await process.communicate(stdin)
        finally:
            kill_group(process.pid)
            status = await process.wait()
        return status, stderr

    def user_arguments(self) -> UserArguments:
        """The arguments that make a new process run as this account; none when it is our own account."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def _process_arguments(self) -> ProcessArguments:
        environ = {"LC_ALL": "C", "PATH": os.defpath}
        return {"cwd": "/", "env": environ, "start_new_session": True, **self.user_arguments()}


def current_account() -> Account:
    return Account(uid=os.geteuid(), gid=os.getegid())


def service_account() -> Account:
    """An unprivileged account: ours unless we are root, otherwise one of those above. Raises `NoServiceAccount`."""
    if os.geteuid() != 0:
        return current_account()
    entry = _find(SERVICE_ACCOUNT)
    for command in CREATE_COMMANDS:
        if entry is None and shutil.which(command[0]):
            # Two homes may start at the same moment: the second command fails or waits, but its account is found below.
            with suppress(subprocess.TimeoutExpired):
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
