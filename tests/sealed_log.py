"""A small sealed log with known contents, a forger who edits it, and the `hydracore audit` command run on it."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import AsyncGenerator, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from events import commands as c
from events.digest import GENESIS, chain_link, command_digest, event_digest
from events.store import EventStore
from hydracore.audit.seal_file import SealFile
from hydracore.audit.sealing import Sealer
from hydracore.cli import main
from hydracore.signals import run_to_completion
from projections.followed import followed_projections
from projections.follower import Follower
from tests import lifecycle
from tests.services import Services
from tests.store_commands import NOW_MS, create_instance, open_store, origin

SEAL_KEY = bytes(range(32))
SEAL_KEY_TEXT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

#: The lane of the three instances that customer ada asks for under these keys.
LANE = 6
KEYS = ("number 40", "number 42", "number 44")

#: The head of the lane when each seal was made.
SEALED_AT = (8, 12)


class Log(NamedTuple):
    """`ids`: three instances of lane 6. Its numbers: 1 to 3 ask for them; 4 to 6 plan a server for the first, in one
    command; 7 to 9 name each; seal 1 is made after 8; 10 to 12 name each again; seal 2 is made at the end.
    """

    url: str
    store: EventStore
    pool: AsyncConnectionPool
    sealer: Sealer
    file: SealFile
    ids: list[UUID]

    async def rename(self, number: int, name: str) -> None:
        """Give the instance another name, which is one event."""
        await self.store.execute(self.ids[number], c.ChangeConfig(at_ms=NOW_MS, agent_name=name), origin())


class SealedLogs:
    """Copies of one sealed log, each for a test that may change it."""

    def __init__(self, services: Services, name: str, seals: Path, ids: Sequence[UUID]) -> None:
        """`name`: the database to copy."""
        self._services = services
        self._name = name
        self._seals = seals
        self._ids = ids
        self._serial = itertools.count(1)

    @asynccontextmanager
    async def copy(self, folder: Path) -> AsyncGenerator[Log]:
        name = f"{self._name}_{next(self._serial)}"
        url = self._services.create_database(name, template=self._name)
        file = SealFile(Path(shutil.copy(self._seals, folder)))
        try:
            async with open_store(url) as (store, pool):
                yield Log(url, store, pool, Sealer(pool, key=SEAL_KEY, file=file), file, [*self._ids])
        finally:
            self._services.drop_database(name)


@pytest.fixture(scope="session", name="sealed_logs")
def sealed_logs_fixture(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Generator[SealedLogs]:
    """The log of `sealed_log`, which takes longer to make than to copy."""
    name, folder = f"sealed_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}", tmp_path_factory.mktemp("seals")
    url = services.create_database(name)

    async def make() -> SealedLogs:
        async with sealed_log(url, folder) as log:
            return SealedLogs(services, name, log.file.path, log.ids)

    yield run_to_completion(make())
    services.drop_database(name)


@asynccontextmanager
async def sealed_log(database_url: str, folder: Path) -> AsyncGenerator[Log]:
    file = SealFile(folder / "seals.jsonl")
    async with open_store(database_url) as (store, pool):
        ids = [await create_instance(store, key=key) for key in KEYS]
        log = Log(database_url, store, pool, Sealer(pool, key=SEAL_KEY, file=file), file, ids)
        await store.execute(ids[0], lifecycle.plan(), origin("worker"))
        await log.rename(0, "first")
        await log.rename(1, "first")
        await log.sealer.seal()
        await log.rename(2, "first")
        for number in range(3):
            await log.rename(number, "second")
        await log.sealer.seal()
        assert [seal.heads[LANE] for seal in file.read()] == list(SEALED_AT)
        yield log


async def update_projections(log: Log) -> None:
    """Bring the followed projections up to date with the log."""
    follower = Follower(log.pool, *followed_projections())
    await follower.create_checkpoints()
    await follower.catch_up()


def run_audit(log: Log, *words: str, **environ: str) -> Result:
    """`hydracore audit ...` with the settings of this log, the seal key among them."""
    env = {"HYDRACORE_DATABASE_URL": log.url, "HYDRACORE_SEAL_KEY": SEAL_KEY_TEXT, "HYDRACORE_SEAL_FILE": "", **environ}
    # In a thread: the command runs an event loop, and the caller may be running one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(CliRunner().invoke, main, ["audit", *words], env=env).result()


class Forger:
    """Edits the log with the owner's rights, and recomputes the digests and links that a test asks for."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection

    def do(self, *statements: str) -> None:
        for statement in statements:
            self.connection.execute(statement.encode())

    def redo_event(self, seq: int) -> None:
        """Recompute the event's digest."""
        (event,) = self._rows("SELECT *, payload::text AS text FROM event WHERE lane = %s AND seq = %s", LANE, seq)
        digest = event_digest(
            stream_id=event["stream_id"],
            version=event["version"],
            tag=event["type"],
            schema_version=event["schema_version"],
            payload=event["text"].encode(),
        )
        self.connection.execute("UPDATE event SET digest = %s WHERE lane = %s AND seq = %s", (digest, LANE, seq))

    def redo_command(self, seq: int) -> None:
        """Recompute the digest of the command that begins at `seq`."""
        (command,) = self._rows(
            "SELECT *, result::text AS text FROM command WHERE lane = %s AND first_seq = %s", LANE, seq
        )
        events = self._rows(
            "SELECT digest FROM event WHERE lane = %s AND seq >= %s AND seq < %s ORDER BY seq",
            *(LANE, seq, seq + command["event_count"]),
        )
        names = (
            "command_id",
            "stream_id",
            "tenant_id",
            "name",
            "actor",
            "correlation_id",
            "causation_id",
            "request_hash",
        )
        digest = command_digest(
            **{name: command[name] for name in names},
            result=None if command["text"] is None else command["text"].encode(),
            event_digests=[event["digest"] for event in events],
        )
        self.connection.execute(
            "UPDATE command SET digest = %s WHERE lane = %s AND first_seq = %s", (digest, LANE, seq)
        )

    def redo_links(self, *, first: int = 1, last: int = 1_000_000) -> None:
        """Recompute the links of the commands that begin from `first` to `last`."""
        commands = self._rows("SELECT * FROM command WHERE lane = %s ORDER BY first_seq", LANE)
        link = GENESIS
        for command in commands:
            if first <= command["first_seq"] <= last:
                recorded_us = round(command["recorded_at"].timestamp() * 1_000_000)
                command["link"] = chain_link(
                    previous=link,
                    command=command["digest"],
                    first_seq=command["first_seq"],
                    recorded_us=recorded_us,
                )
                self.connection.execute(
                    "UPDATE command SET link = %s WHERE lane = %s AND first_seq = %s",
                    (command["link"], LANE, command["first_seq"]),
                )
            link = command["link"]

    def _rows(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        with self.connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(statement.encode(), parameters)
            return cursor.fetchall()
