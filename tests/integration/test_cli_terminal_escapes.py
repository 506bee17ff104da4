"""Text in rows cannot control the terminal of a user who looks at them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from psycopg import AsyncConnection

from hydracore.cli import main
from hydracore.cli.printing import LINE_MAX, SHOWN_MAX, brief
from tests.rebuilding import follow_all, write_instances
from tests.store_commands import open_store

#: Clears the screen, claims that all is well, and hides what follows in the window's title. It also has a one-character escape,
#: a character that turns the direction of writing, and other ends of lines.
LIE = "x\x1b[2J\x1b[H0 findings in 41 events\r\n$ \x1b]0;\x9b2J\N{RIGHT-TO-LEFT OVERRIDE}\N{LINE SEPARATOR}\x7f"
#: The middle of it, which is on the screen when it is shown.
CLAIM = "0 findings in 41 events"
#: So long that nobody would look at what comes after it.
LONG = "x" * 50_000
#: The longest line, with the note of its length.
LINE_LENGTH_MAX = LINE_MAX + len("... (1000000 characters)")
INSERT_LINE = (
    "INSERT INTO provision_log (lane, instance_id, seq, level, message, created_at)"
    " SELECT lane, id, 99, 'info', %s, now() FROM instance LIMIT 1"
)

#: Commands that show what is planted.
WORDS = (
    "audit verify",
    "fleet",
    "activity acme",
    "projections status",
    "projections rebuild --dry-run fleet",
    "projections rebuild --dry-run provision_log",
)


async def hydracore(url: str, folder: Path, *words: str, answer: str = "") -> Result:
    """The command in this process; a command has an event loop of its own, so it runs in a thread."""
    env = {
        "HYDRACORE_DATABASE_URL": url,
        "HYDRACORE_MASTER_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        "HYDRACORE_ERASURE_FILE": str(folder / "erasures.jsonl"),
    }
    # `color` leaves escape sequences in, as on a terminal.
    return await asyncio.to_thread(CliRunner().invoke, main, words, env=env, input=answer, color=True)


def lines_of(done: Result) -> list[str]:
    """The lines as a terminal shows them."""
    return done.output.removesuffix("\n").split("\n")


@pytest.fixture(name="url")
async def url_fixture(database_url: str, owner_conn: AsyncConnection) -> str:
    """The URL of a database with `LIE` wherever the app's role may write a text that a command shows."""
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=2)
        await follow_all(pool)
    await plant(owner_conn, LIE)
    return database_url


async def plant(owner_conn: AsyncConnection, text: str) -> None:
    await owner_conn.execute("SET ROLE hydracore_app")
    for statement in (
        "INSERT INTO usage_end_user VALUES (7, gen_random_uuid(), '2026-11-01', %s)",
        "INSERT INTO fleet VALUES (3, '2026-11-01', 'pending', %s, 'local', 'starter', 5, 0)",
        "INSERT INTO activity VALUES (3, 'acme', current_date, %s, 'Do', 1, 1, now(), now())",
        INSERT_LINE,
        "UPDATE checkpoint SET seq = 0, parked_until = 'infinity', error = %s WHERE follower = 'activity'",
    ):
        await owner_conn.execute(statement.encode(), (text,))
    await owner_conn.execute("RESET ROLE")


@pytest.mark.parametrize("words", WORDS)
async def test_no_command_prints_control_characters_of_a_planted_row(url: str, tmp_path: Path, words: str) -> None:
    done = await hydracore(url, tmp_path, *words.split())

    assert [line for line in lines_of(done) if CLAIM in line] != []
    assert [line for line in lines_of(done) if not line.isprintable() or line.startswith(CLAIM)] == []


async def test_commands_show_only_the_beginning_of_a_long_line(
    database_url: str, owner_conn: AsyncConnection, tmp_path: Path
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=2)
        await follow_all(pool)
    await plant(owner_conn, LONG)

    for words in WORDS:
        done = await hydracore(database_url, tmp_path, *words.split())
        assert LONG[:50] in done.output, words
        assert max(map(len, lines_of(done))) <= LINE_LENGTH_MAX, words


async def test_a_history_shows_only_the_beginning_of_a_long_actor_name_and_is_complete_otherwise(
    database_url: str, owner_conn: AsyncConnection, tmp_path: Path
) -> None:
    async with open_store(database_url) as (store, _pool):
        await write_instances(store, count=1)
    await owner_conn.execute("UPDATE command SET actor = %s", (LONG,))
    (instance_id,) = await (await owner_conn.execute("SELECT stream_id FROM event LIMIT 1")).fetchone() or ("",)

    shown = await hydracore(database_url, tmp_path, "audit", "show", str(instance_id))
    different = await hydracore(database_url, tmp_path, "audit", "diff", str(instance_id), "--from", "0", "--to", "1")

    assert (shown.exit_code, different.exit_code) == (0, 0)
    assert f"by {brief(LONG)}: RequestInstance " in shown.output
    assert f"by {brief(LONG)} (RequestInstance)" in different.output
    assert LONG[: SHOWN_MAX + 1] not in shown.output + different.output


async def test_errors_and_questions_print_no_control_characters_of_rows_and_customer_ids(
    url: str, owner_conn: AsyncConnection, tmp_path: Path
) -> None:
    await owner_conn.execute("UPDATE command SET tenant_id = %s", (LIE,))
    await owner_conn.execute("UPDATE event SET tenant_id = %s, type = %s", (LIE, LIE))
    await owner_conn.execute("UPDATE instance SET tenant_id = %s, customer_id = %s", (LIE, LIE))
    (instance_id,) = await (await owner_conn.execute("SELECT id FROM instance LIMIT 1")).fetchone() or ("",)

    refused = await hydracore(url, tmp_path, "audit", "show", str(instance_id))
    asked = await hydracore(url, tmp_path, "audit", "erase-customer", LIE, answer="n\n")

    assert (refused.exit_code, asked.exit_code) == (3, 2)
    for done in (refused, asked):
        assert [line for line in lines_of(done) if CLAIM in line] != []
        assert [line for line in lines_of(done) if not line.isprintable() or line.startswith(CLAIM)] == []
