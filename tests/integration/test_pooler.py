"""Commands behind a pooler in transaction mode, which keeps no prepared statements."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql

from hydracore.cli import main
from tests.customers import World, world_fixture
from tests.pooler import needs_pooler, pooled
from tests.rebuilding import follow_all, write_instances
from tests.waiting import NICE_PATIENCE_S

__all__ = ["world_fixture"]

ALLOWED = (
    *("audit verify", "audit verify --workers 2", "audit export --tenant acme --output {folder}/export"),
    *("projections list", "projections status", "fleet", "activity acme", "master-key status"),
    *("api-key create --tenant acme --name ours", "api-key list --tenant acme", "audit erase-customer bob --yes"),
)

#: Commands that need locks of their session, and so a direct connection.
REFUSED = (
    "db migrate",
    "projections prune --all",
    "projections rollback fleet",
    "projections rebuild fleet --workers 1",
)


@needs_pooler
@pytest.mark.timeout(3 * NICE_PATIENCE_S)
async def test_commands_work_behind_a_transaction_pooler_or_are_refused_with_the_reason(
    world: World, owner_conn: psycopg.AsyncConnection
) -> None:
    await write_instances(world.store, count=8)
    await follow_all(world.pool)
    folder = world.file.path.parent
    # The pooler does not pass on session options either.
    german = sql.SQL("ALTER DATABASE {} SET datestyle = German").format(sql.Identifier(owner_conn.info.dbname))
    await owner_conn.execute(german)

    async with pooled(world.url, prepared=False) as url:
        settings = {
            "HYDRACORE_DATABASE_URL": url,
            "HYDRACORE_DATABASE_ROLE": "",
            "HYDRACORE_DATABASE_PREPARED": "false",
            "HYDRACORE_MASTER_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            "HYDRACORE_ERASURE_FILE": str(world.file.path),
        }

        async def ask(words: str) -> Result:
            return await asyncio.to_thread(CliRunner().invoke, main, words.format(folder=folder).split(), env=settings)

        # A statement that one command left prepared in a session would make the next command there fail.
        for words in (*ALLOWED, *ALLOWED[:-4]):
            done = await ask(words.replace("export --", "export --force --"))
            # Some of the instances, which never enrol, wait for a master key.
            assert (done.exit_code, done.stderr) == (words == "master-key status", ""), (words, done.output)
        for words in REFUSED:
            done = await ask(words)
            assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (3, "", 1), (words, done.output)
            assert "leads to a pooler in transaction mode" in done.stderr
    direct = {"HYDRACORE_DATABASE_PREPARED": "false", "HYDRACORE_ERASURE_FILE": ""}
    assert (await asyncio.to_thread(lambda: world.run(*REFUSED[-1].split(), **direct))).exit_code == 0
