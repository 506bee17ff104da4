"""A PostgreSQL with a hot standby, and a Valkey for one test alone, for tests of failover."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import psycopg
import pytest

from hydracore.embedded.home import Home
from hydracore.embedded.part import Part
from hydracore.embedded.postgres import OWNER, Postgres
from hydracore.embedded.supervisor import Supervisor
from tests.services import Services, open_folder, valkey_in
from tests.waiting import until

#: What the first server and the one that takes over are called, as parts.
FIRST, SECOND = "postgres", "postgres-2"

#: What the standby calls itself, for `synchronous_standby_names`.
STANDBY: Final = "second"


class Replicated:
    """`database_url` names both servers, and leads to the one that takes writes."""

    def __init__(self, supervisor: Supervisor, first: Postgres, second: Postgres, *, redis_url: str) -> None:
        self.supervisor = supervisor
        self.first = first
        self.second = second
        self.redis_url = redis_url
        hosts = f"127.0.0.1:{first.port},127.0.0.1:{second.port}"
        password = urlsplit(first.url()).password
        self.database_url = f"postgresql://{OWNER}:{password}@{hosts}/{OWNER}?target_session_attrs=read-write"

    @classmethod
    @asynccontextmanager
    async def running(cls, base: Path, services: Services) -> AsyncGenerator[Self]:
        with open_folder(base) as folder:
            home = Home(folder / "home")
            # A server that was stopped in order is its own base backup.
            first, second = (services.own_postgres(place) for place in (home.postgres, folder / "second"))
            valkey = valkey_in(home)
            make_standby(second, first)
            try:
                async with Supervisor.running(home=home.path, logs=home.logs) as supervisor:
                    await supervisor.start(valkey.part())
                    await supervisor.start(_breaking_off(first, FIRST))
                    await supervisor.start(_breaking_off(second, SECOND))
                    yield cls(supervisor, first, second, redis_url=valkey.url())
            finally:
                for each in (first, second):
                    shutil.rmtree(each.base, ignore_errors=True)

    async def synchronous(self) -> None:
        """From now on no commit is answered that the standby does not have."""
        await as_owner(
            self.first,
            f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'",
            "SELECT pg_reload_conf()",
        )
        await until(lambda: self._is_streaming("sync"))

    async def cut_off(self) -> None:
        """From now on the standby hears nothing more of the first."""
        await as_owner(self.second, "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")

        async def is_cut() -> bool:
            return not await query(self.second, "SELECT pid FROM pg_stat_wal_receiver")

        await until(is_cut)

    async def reconnect(self) -> None:
        """The standby hears the first again."""
        await as_owner(self.second, "ALTER SYSTEM RESET primary_conninfo", "SELECT pg_reload_conf()")

    async def fail_over(self) -> None:
        """The first breaks off, and the standby takes over."""
        await self.supervisor.stop([FIRST])
        await as_owner(self.second, "SELECT pg_promote()")

    async def caught_up(self) -> None:
        """Wait until the standby has all events that there are."""

        async def has_all() -> bool:
            log = "SELECT count(*) FROM event"
            return await query(self.second, log) == await query(self.first, log)

        await until(has_all)

    async def _is_streaming(self, state: str) -> bool:
        return await query(self.first, "SELECT sync_state FROM pg_stat_replication") == [(state,)]


@pytest.fixture(name="replicated")
async def replicated_fixture(services: Services, tmp_path: Path) -> AsyncGenerator[Replicated]:
    async with Replicated.running(tmp_path, services) as pair:
        yield pair


def make_standby(standby: Postgres, primary: Postgres) -> None:
    """Have it be a standby of the other from its next start on."""
    url = urlsplit(primary.url())
    place = (
        f"host={url.hostname} port={url.port} user={url.username} password={url.password} application_name={STANDBY}"
    )
    with (standby.data / "postgresql.conf").open("a") as settings:
        settings.write(f"primary_conninfo = '{place}'\nwal_retrieve_retry_interval = 100ms\n")
    subprocess.run(["cp", "-a", standby.data / "PG_VERSION", standby.data / "standby.signal"], check=True)


def _breaking_off(postgres: Postgres, name: str) -> Part:
    """A server that stops as one that crashes does: nobody gets what others had locked."""
    return replace(postgres.part(name), kind=name, stop_signal=signal.SIGQUIT)


async def as_owner(postgres: Postgres, *statements: str) -> None:
    async with await psycopg.AsyncConnection.connect(postgres.url(), autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def query(postgres: Postgres, statement: str) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(postgres.url(), autocommit=True) as connection:
        return await (await connection.execute(statement.encode())).fetchall()
