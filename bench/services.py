"""The embedded PostgreSQL and Valkey of one run: durable, on a disk, and deleted afterwards."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
from psycopg import sql

from hydracore.db import migrate
from hydracore.embedded.home import Home
from hydracore.embedded.ports import free_port
from hydracore.embedded.postgres import Postgres
from hydracore.embedded.supervisor import Supervisor
from hydracore.embedded.valkey import Valkey

#: The settings that make an append durable. Without them all figures would be too good.
_DURABLE = ("fsync", "synchronous_commit", "full_page_writes")


class Services(NamedTuple):
    """The services that measurements use. Further parts are started by the same supervisor, and end with it."""

    home: Home
    supervisor: Supervisor
    postgres: Postgres
    valkey: Valkey

    async def fresh_database(self, name: str, *, migrated: bool) -> str:
        """Create an empty database of this name, in place of one that exists. Returns its URL."""
        async with await psycopg.AsyncConnection.connect(self.postgres.url("postgres"), autocommit=True) as connection:
            identifier = sql.Identifier(name)
            await connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier))
            await connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
        url = self.postgres.url(name)
        if migrated:
            await asyncio.to_thread(migrate, url)
        return url

    async def checkpoint(self) -> None:
        """Write out what earlier rounds have left in memory, so that no round pays for another."""
        async with await psycopg.AsyncConnection.connect(self.postgres.url(), autocommit=True) as connection:
            await connection.execute("CHECKPOINT")


@asynccontextmanager
async def running_services() -> AsyncGenerator[Services]:
    """Both services, ready. Their data is not in memory, where `fsync` would cost nothing."""
    folder = Path(tempfile.mkdtemp(prefix="hydracore-bench-", dir=Path(tempfile.gettempdir())))
    folder.chmod(0o711)  # noqa: ASYNC240 - once, before anything runs: PostgreSQL's account must pass through.
    home = Home(folder / "home")
    secrets = home.secrets()
    postgres = Postgres(
        base=home.postgres, data_id=secrets.home_id, password=secrets.database_password, port=free_port()
    )
    valkey = Valkey(base=home.valkey, password=secrets.redis_password, port=free_port())
    try:
        async with Supervisor.running(home=home.path, logs=home.logs) as supervisor:
            await asyncio.gather(supervisor.start(postgres.part()), supervisor.start(valkey.part()))
            await _assert_durable(postgres.url())
            yield Services(home, supervisor, postgres, valkey)
    finally:
        shutil.rmtree(postgres.base, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


async def _assert_durable(url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for setting in _DURABLE:
            row = await (await connection.execute("SELECT current_setting(%s)", (setting,))).fetchone()
            assert row == ("on",), f"{setting} is {row}"
