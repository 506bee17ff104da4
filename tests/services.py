"""One real PostgreSQL and one real Valkey for a whole test run, however many xdist workers it has.

A host process (`python -m tests.services DIR`) runs both and listens on a Unix socket. Every xdist worker that needs the services
keeps a connection to it open. When the last connection closes, for whatever reason (exit, Ctrl-C, a kill), the host stops the
services, deletes their data and exits. So nothing is left over, and no worker has to clean up.
"""

import asyncio
import fcntl
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import LiteralString, Self
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
import psycopg
from psycopg import sql

from hydracore.db import migrate
from hydracore.embedded.files import tail
from hydracore.embedded.home import Home
from hydracore.embedded.ports import free_port
from hydracore.embedded.postgres import OWNER, Postgres
from hydracore.embedded.supervisor import Supervisor
from hydracore.embedded.valkey import Valkey
from hydracore.signals import run_to_completion

#: Migrated once; every test's database is a copy of it.
TEMPLATE = OWNER
#: Logical Valkey databases; number 0 counts, each test gets one of the others.
VALKEY_DATABASES = 512
#: Memory is used as the disk when it has this much room; fsync stays on, and costs nothing there.
SHM = Path("/dev/shm")  # noqa: S108 - a tmpfs by definition, and only for tests
SHM_BYTES_MIN = 2 * 1024**3
HOST_READY_S_MAX = 60
#: A host that nobody ever came to ends by itself.
FIRST_GUEST_S_MAX = 60

_serial = itertools.count(1)


class Services(msgspec.Struct, frozen=True):
    """What the host tells its guests. `postgres_url` has a `{}` where the name of the database goes, `redis_url` its number.

    `made`: a data directory with a migrated database, in which no server works: making one takes a second, copying it a tenth.
    """

    postgres_url: str
    redis_url: str
    made: str

    def create_database(self, name: str, *, template: str = TEMPLATE) -> str:
        """A fresh, migrated database; its URL. `template`: another one to copy, which nobody is connected to."""
        names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
        statement = sql.SQL("CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy").format(**names)
        _administer(self.postgres_url).execute(statement)
        return self.postgres_url.format(name)

    def own_postgres(self, base: Path) -> Postgres:
        """One on a copy of `made`, not started yet."""
        password = str(urlsplit(self.postgres_url.format(OWNER)).password)
        postgres = Postgres(base=base, data_id=uuid4().hex, password=password, port=free_port())
        subprocess.run(["cp", "-a", self.made, postgres.data], check=True)
        return postgres

    def drop_database(self, name: str) -> None:
        """Drop it, whoever is still connected."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        _administer(self.postgres_url).execute(statement)


@contextmanager
def empty_database(services: Services, options: LiteralString = "") -> Generator[str]:
    """A database with nothing in it; its URL."""
    name = f"empty_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{next(_serial)}"
    statement = sql.SQL("CREATE DATABASE {}" + options).format(sql.Identifier(name))
    _administer(services.postgres_url).execute(statement)
    try:
        yield services.postgres_url.format(name)
    finally:
        services.drop_database(name)


#: This process's connections for making and dropping databases, by the URL of the server.
_administrators: dict[str, psycopg.Connection] = {}


def _administer(postgres_url: str) -> psycopg.Connection:
    connection = _administrators.get(postgres_url)
    if connection is None or connection.closed:
        connection = psycopg.connect(postgres_url.format("postgres"), autocommit=True)
        _administrators[postgres_url] = connection
    return connection


class Guest:
    """One worker's hold on the services."""

    def __init__(self, base: Path) -> None:
        """Come in, and start the host when there is none. `base`: a directory that all workers of this run share."""
        with (base / "services.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            come_in = _come_in(base)
            if come_in is None:
                _start_host(base)
                come_in = _come_in(base)
        assert come_in is not None, tail(base / "services.log")
        self._door, self.services = come_in

    def leave(self) -> None:
        """Let go; the last guest waits until everything is stopped and deleted."""
        if (administrator := _administrators.pop(self.services.postgres_url, None)) is not None:
            administrator.close()
        self._door.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            while self._door.recv(1):
                pass
        self._door.close()


class OwnServices:
    """A PostgreSQL and a Valkey of one test, which it may kill, restart and flush. The supervisor restarts what it kills."""

    def __init__(self, supervisor: Supervisor, postgres: Postgres, valkey: Valkey) -> None:
        self.supervisor = supervisor
        self._postgres = postgres
        self._parts = {"postgres": postgres.part(), "valkey": valkey.part()}
        self.database_url = postgres.url()
        self.redis_url = valkey.url()
        self._answers = {"postgres": postgres.answers, "valkey": valkey.answers}

    @classmethod
    @asynccontextmanager
    async def running(cls, base: Path, services: Services) -> AsyncGenerator[Self]:
        with open_folder(base) as folder:
            home = Home(folder / "home")
            postgres, valkey = services.own_postgres(home.postgres), valkey_in(home)
            try:
                async with Supervisor.running(home=home.path, logs=home.logs) as supervisor:
                    await asyncio.gather(supervisor.start(postgres.part()), supervisor.start(valkey.part()))
                    yield cls(supervisor, postgres, valkey)
            finally:
                shutil.rmtree(postgres.base, ignore_errors=True)

    async def restart(self, name: str) -> None:
        """Stop `postgres` or `valkey` in order and start it again."""
        await self.supervisor.stop([name])
        await self.supervisor.start(self._parts[name])

    async def kill(self, name: str) -> None:
        """kill -9, then wait until the supervisor has brought it back."""
        (pid,) = self.supervisor.pids()[name]
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while self.supervisor.pids()[name] in ([], [pid]) or not await self._answers[name]():  # noqa: ASYNC110 - a process sets no Event
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def stopped_postgres(self) -> AsyncGenerator[Path]:
        """Meanwhile PostgreSQL does not run; where its files are."""
        part = self._postgres.part()
        await self.supervisor.stop([part.name])
        yield self._postgres.data
        await self.supervisor.start(part)

    @contextmanager
    def frozen(self, name: str) -> Generator[None]:
        """Meanwhile `postgres` or `valkey` stands still, with all of its processes: it keeps connections and answers nothing."""
        (first,) = self.supervisor.pids()[name]
        os.kill(first, signal.SIGSTOP)
        # It makes no more of them now.
        pids = [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]
        for pid in pids[1:]:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


@contextmanager
def open_folder(fallback: Path | None = None) -> Generator[Path]:
    """A folder on the fastest disk there is, that every account can pass through; deleted afterwards."""
    roomy = SHM.is_dir() and os.access(SHM, os.W_OK) and shutil.disk_usage(SHM).free > SHM_BYTES_MIN
    path = Path(tempfile.mkdtemp(prefix="hydracore-test-", dir=SHM if roomy else fallback))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def valkey_in(home: Home) -> Valkey:
    password = home.secrets().redis_password
    return Valkey(base=home.valkey, password=password, port=free_port(), databases=VALKEY_DATABASES)


def _come_in(base: Path) -> tuple[socket.socket, Services] | None:
    """Connect to the host's door; `None` when there is no host, or one that is just closing."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.settimeout(HOST_READY_S_MAX)
    try:
        door.connect((base / "services.address").read_text())
        line = door.makefile("rb").readline()
        return door, msgspec.json.decode(line, type=Services)
    except (OSError, msgspec.DecodeError):
        door.close()
        return None


def _start_host(base: Path) -> None:
    """Start the host and wait until its door is open. It is no child of any one worker: it must outlive each of them."""
    (base / "services.address").unlink(missing_ok=True)
    with (base / "services.log").open("ab") as log:
        host = subprocess.Popen(
            [sys.executable, "-m", "tests.services", str(base)],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + HOST_READY_S_MAX
    while not (base / "services.address").exists() and host.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    # Popen complains about a child that outlives it, which is what this one is for.
    host.returncode = 0


async def _host(base: Path) -> None:
    with open_folder(base) as folder:
        home = Home(folder / "home")
        secrets, valkey = home.secrets(), valkey_in(home)
        postgres = Postgres(
            base=home.postgres, data_id=secrets.home_id, password=secrets.database_password, port=free_port()
        )
        made = folder / "made"
        try:
            async with Supervisor.running(home=home.path, logs=home.logs) as supervisor:
                await asyncio.gather(supervisor.start(postgres.part()), supervisor.start(valkey.part()))
                await asyncio.to_thread(migrate, postgres.url())
                await supervisor.stop([postgres.part().name])
                await asyncio.to_thread(subprocess.run, ["cp", "-a", postgres.data, made], check=True)
                await supervisor.start(postgres.part())
                services = Services(postgres.url("{}"), valkey.url().removesuffix("/0") + "/{}", str(made))
                last_guest = await _keep_door(base, folder / "door", services)
        finally:
            shutil.rmtree(postgres.base, ignore_errors=True)
    last_guest.close()


async def _keep_door(base: Path, address: Path, services: Services) -> asyncio.StreamWriter:
    """Serve guests until none is left; the last one's writer, to be closed when everything is gone."""
    guests: set[asyncio.StreamWriter] = set()
    last: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if last.done():
            writer.close()
            return
        guests.add(writer)
        writer.write(msgspec.json.encode(services) + b"\n")
        with suppress(OSError):
            await reader.read()
        guests.remove(writer)
        if guests:
            writer.close()
        else:
            server.close()
            last.set_result(writer)

    server = await asyncio.start_unix_server(serve, address)
    draft = base / "services.address.new"
    draft.write_text(str(address))
    draft.rename(base / "services.address")
    loop = asyncio.get_running_loop()
    loop.call_later(FIRST_GUEST_S_MAX, lambda: guests or last.done() or last.set_exception(TimeoutError("nobody came")))
    return await last


if __name__ == "__main__":
    run_to_completion(_host(Path(sys.argv[1])))
