"""What is asked behind a pooler in transaction mode, which keeps no prepared statements."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql

from hydracore.cli import main
from tests.customers import World, world_fixture
from tests.pooler import needs_pooler, pooled
from tests.rebuilding import follow_all, write_lives
from tests.waiting import NICE_PATIENCE_S

__all__ = ["world_fixture"]

ASKED = (
    *("audit verify", "audit verify --workers 2", "audit export --tenant acme --output {folder}/export"),
    *("projections list", "projections status", "fleet", "activity acme", "master-key status"),
    *("api-key list --tenant acme", "audit erase-customer bob --yes"),
)

#: What takes turns by locks of its session.
NOT_ASKED = (
    "db migrate",
    "projections prune --all",
    "projections rollback fleet",
    "projections rebuild fleet --workers 1",
)


@needs_pooler
@pytest.mark.timeout(3 * NICE_PATIENCE_S)
async def test_commands_that_ask_prepare_nothing_behind_a_pooler_that_keeps_nothing(
    world: World, owner_conn: psycopg.AsyncConnection
) -> None:
    await write_lives(world.store, count=8)
    await follow_all(world.pool)
    folder = world.file.path.parent
    # Nor do options get through there.
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

        # Whatever one of them left prepared in a session, the next that gets it would stumble over.
        for words in (*ASKED, *ASKED[:-3]):
            done = await ask(words.replace("export --", "export --force --"))
            # Of instances that nobody enrols, some wait for a master key.
            assert (done.exit_code, done.stderr) == (words == "master-key status", ""), (words, done.output)
        for words in NOT_ASKED:
            done = await ask(words)
            assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (3, "", 1), (words, done.output)
            assert "leads to a pooler in transaction mode" in done.stderr
    direct = {"HYDRACORE_DATABASE_PREPARED": "false", "HYDRACORE_ERASURE_FILE": ""}
    assert (await asyncio.to_thread(lambda: world.run(*NOT_ASKED[-1].split(), **direct))).exit_code == 0
