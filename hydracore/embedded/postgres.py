"""The embedded PostgreSQL: durable (fsync on), on loopback TCP, with a password, as an account that is never root.

Permissions of the user's directories are left alone. Where the account that PostgreSQL must run as cannot reach the
home, such as below /root, the data is outside of the home: in a directory below `/var/lib/hydracore`, named by the
home's id.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import psycopg

from hydracore.embedded.account import Account, current_account, service_account
from hydracore.embedded.binaries import postgres_programs
from hydracore.embedded.errors import EmbeddedError
from hydracore.embedded.files import lock_directory
from hydracore.embedded.leftovers import end_processes
from hydracore.embedded.part import Part
from hydracore.embedded.ports import LOOPBACK

#: The parent of the data directories of homes that PostgreSQL's account cannot reach.
STATE_DIR: Final = Path("/var/lib/hydracore")

#: The lock file of data outside of the home, with the pid of its present or last holder.
LOCK: Final = "lock"

#: The name of the superuser, who owns everything, and of the database.
OWNER: Final = "hydracore"

INITDB_S_MAX: Final = 60
CONNECT_S_MAX: Final = 2
#: How long processes of an earlier server may take to go before they are killed.
LEFTOVER_S_MAX: Final = 3

#: `builtin` collation sorts the same on every machine; loopback TCP with scram is the only way in.
INITDB_OPTIONS: Final = (
    f"--username={OWNER}",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    # Iterations slow guessing down, and take 3 ms of each new connection. The owner's
    # password is random and cannot be guessed.
    "--set=scram_iterations=1",
    "--no-instructions",
)

SERVER_OPTIONS: Final = (
    f"listen_addresses={LOOPBACK}",
    "unix_socket_directories=",
    "max_connections=200",
    "timezone=UTC",
    "log_timezone=UTC",
    # For roles that the user adds: passwords that people choose can be guessed.
    "scram_iterations=4096",
    # A terse log names the constraint and leaves out the row that broke it.
    "log_error_verbosity=terse",
    # Statements here are short; compiling them costs more than it saves.
    "jit=off",
)


class Postgres:
    """One data directory and the part that serves it.

    `data_id` names its directory below `state` if it cannot be `base`.
    """

    def __init__(self, *, base: Path, data_id: str, password: str, port: int, state: Path = STATE_DIR) -> None:
        assert data_id
        assert "/" not in data_id
        self.port = port
        self._password = password
        self._preferred_base = base
        self._fallback_base = state / data_id
        self.account, self.base = self._choose_base()
        self.data = self.base / "data"

    def url(self, database: str = OWNER) -> str:
        return f"postgresql://{OWNER}:{self._password}@{LOOPBACK}:{self.port}/{database}"

    def part(self, name: str = "postgres") -> Part:
        """The server as a part; the first start makes the data directory."""
        options = [word for option in (f"port={self.port}", *SERVER_OPTIONS) for word in ("-c", option)]
        return Part(
            name=name,
            kind="postgres",
            command=(str(postgres_programs(self.account) / "postgres"), "-D", str(self.data), *options),
            environ={"LC_ALL": "C", "PATH": os.defpath},
            account=self.account,
            cwd="/",
            # Fast shutdown; SIGTERM would wait for every client to leave by itself.
            stop_signal=signal.SIGINT,
            prepare=self.prepare,
            ready=self.answers,
        )

    async def prepare(self) -> None:
        """Create the data directory if there is none, and remove what an earlier server has left in it."""
        if not self.data.exists():
            await self._initialise()
        await asyncio.to_thread(self._remove_leftovers)

    async def answers(self) -> bool:
        """Whether the server takes connections and answers."""
        try:
            connection = await psycopg.AsyncConnection.connect(self.url(), connect_timeout=CONNECT_S_MAX)
        except psycopg.OperationalError:
            return False
        async with connection:
            await connection.execute("SELECT 1")
        return True

    @contextmanager
    def lock(self) -> Generator[None]:
        """Lock data that is outside of the home: a copy of the home would use the same data. Raises `HomeInUse`.

        Data inside the home needs no second lock: the home's lock covers it.
        """
        if self.base == self._preferred_base:
            yield
            return
        with lock_directory(self.base / LOCK):
            yield

    def _choose_base(self) -> tuple[Account, Path]:
        """The account that runs the server, and its directory. Existing data stays where it is and with its owner."""
        for base in (self._preferred_base, self._fallback_base):
            if _has_data(base):
                owner = Account.owner_of(base / "data")
                if not owner.can_enter(base):
                    raise EmbeddedError(
                        f"{base} has a database whose owner (uid {owner.uid}) cannot access it any more"
                    )
                return owner, base
        account = service_account()
        base = self._preferred_base
        if account != current_account() and not account.can_enter(self._preferred_base.parent):
            base = self._fallback_base
        try:
            # The home, which is the other parent, is there already.
            base.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            base.mkdir(mode=0o700, exist_ok=True)
            if account != current_account():
                os.chown(base, account.uid, account.gid)
        except OSError as error:
            raise EmbeddedError(f"cannot make {base} for PostgreSQL's data: {error.strerror}") from error
        return account, base

    async def _initialise(self) -> None:
        """Make the data directory and the database in a draft, then rename it: a crash leaves no half-made directory."""
        draft = self.base / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        password_file = self.base / "initdb.password"
        password_file.unlink(missing_ok=True)
        descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(self._password)
                if self.account != current_account():
                    os.fchown(descriptor, self.account.uid, self.account.gid)
            programs = await asyncio.to_thread(postgres_programs, self.account)
            await self._run([str(programs / "initdb"), *INITDB_OPTIONS, f"--pwfile={password_file}", "-D", str(draft)])
            single = [str(programs / "postgres"), "--single", "-D", str(draft), "postgres"]
            await self._run(single, stdin=f"CREATE DATABASE {OWNER};\n".encode())
        finally:
            password_file.unlink()
        draft.rename(self.data)

    async def _run(self, command: list[str], *, stdin: bytes = b"") -> None:
        try:
            status, stderr = await self.account.run_long(command, stdin=stdin, seconds_max=INITDB_S_MAX)
        except TimeoutError:
            raise EmbeddedError(f"PostgreSQL did not create {self.data} within {INITDB_S_MAX} s") from None
        # Single-user mode reports a failed statement, but still ends with 0.
        if status != 0 or b"ERROR:" in stderr:
            raise EmbeddedError(f"PostgreSQL could not create {self.data}: {stderr.decode(errors='replace').strip()}")

    def _remove_leftovers(self) -> None:
        """End the processes of an earlier server on this data, and remove its pid file.

        PostgreSQL would not start where the pid in that file now belongs to another program.
        """
        end_servers(self.data)
        (self.data / "postmaster.pid").unlink(missing_ok=True)


def end_servers(data: Path) -> None:
    """End every server process that works in the data directory `data`, including children of a killed server."""
    leftovers = [process for process in psutil.process_iter() if _is_server_in(process, data)]
    end_processes(dict.fromkeys(leftovers, signal.SIGINT), seconds_max=LEFTOVER_S_MAX)


def _has_data(base: Path) -> bool:
    try:
        return (base / "data").exists()
    except PermissionError:
        raise EmbeddedError(f"{base} belongs to another user: run this as that user or as root") from None


def _is_server_in(process: psutil.Process, directory: Path) -> bool:
    try:
        return process.name() == "postgres" and _working_directory(process, directory) == str(directory)
    except psutil.Error:
        return False


def _working_directory(process: psutil.Process, directory: Path) -> str:
    """The working directory of a process; where it may not be read, `directory` if the command line names it, else "".

    In a container not even root may read it of another account's process.
    """
    try:
        return process.cwd()
    except psutil.AccessDenied:
        return str(directory) if str(directory) in process.cmdline() else ""
