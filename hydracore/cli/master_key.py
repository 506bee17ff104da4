"""`master-key`: show what depends on a former master key, and replace that; issue new agent keys after a restore.

See docs/operations.md. All three exit with 1 where a key or a history cannot be read: nobody can tell what depends on it.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import click

from hydracore import settings as configuration
from hydracore.cli.exit_status import FOUND
from hydracore.cli.printing import json_option, operator, print_json, say
from hydracore.cli.running import load, on_database
from hydracore.wording import plural

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

    from events.rewrapping import KeyCounts
    from hydracore.audit.verifying import Progress
    from hydracore.reissuing import AgentTokens, Reissued, Reissuer
    from hydracore.settings import Settings


@click.group("master-key")
def master_key() -> None:
    """Replace the master key without downtime."""


@master_key.command()
@json_option
def status(*, as_json: bool) -> None:
    """Show what still depends on a former master key.

    Counts the customers' keys and the agents' tokens by master key: the present one, a former one, or one that is not
    configured.

    Exit status: 0 nothing depends on a former key; 1 something does, or that could not be determined for all.
    """
    from hydracore.cli.audit_view import progress_bar

    settings = load(require=configuration.MASTER_KEY_NEEDS)
    with progress_bar("looking") as progress:
        keys, agents = on_database(settings, lambda pool: _survey(settings, pool, progress))
    needed = bool(keys.former + agents.former + agents.awaited + agents.passing)
    unknown = keys.unreadable + agents.unknown + agents.unreadable
    if as_json:
        print_json({"customer_keys": keys, "agents": agents, "is_former_needed": needed})
    else:
        say(_keys_line(keys))
        say(_agents_line(agents))
        if needed:
            say("a former master key is still needed")
        elif unknown:
            say(f"no configured former master key is needed; {unknown} of these could not be determined")
        else:
            say("nothing here depends on a former master key")
    raise SystemExit(FOUND if needed or unknown else 0)


@master_key.command()
@json_option
def rewrap(*, as_json: bool) -> None:
    """Re-encrypt all customers' keys with the present master key.

    Can be interrupted and repeated at any time.

    Exit status: 0 done; 1 some keys are left, because they were in use (run this again) or no configured master key
    decrypts them.
    """
    from hydracore.cli.audit_view import progress_bar

    settings = load(require=configuration.MASTER_KEY_NEEDS)
    with progress_bar("wrapping") as progress:
        done, left = on_database(settings, lambda pool: _rewrap(settings, pool, progress))
    if as_json:
        print_json({"rewrapped": done, "customer_keys": left})
    else:
        say(f"rewrapped: {plural(done, 'key')}")
        say(_keys_line(left))
    raise SystemExit(FOUND if left.former + left.unreadable else 0)


@master_key.command()
@click.option("--all", "everyone", is_flag=True, help="Reissue the tokens of all agents, as needed after a restore.")
@json_option
def reissue(*, everyone: bool, as_json: bool) -> None:
    """Reissue agents' tokens that come from another master key.

    The agents fetch new tokens and their configuration when they next report.

    Use --all after a restore: agents may have tokens or configurations that the restored log does not know.

    Can be interrupted and repeated at any time.

    Exit status: 0 done; 1 some agents are left.
    """
    from hydracore.cli.audit_view import progress_bar

    settings = load(require=configuration.MASTER_KEY_NEEDS)
    with progress_bar("reissuing") as progress:
        done = on_database(settings, lambda pool: _reissue(settings, pool, progress, everyone=everyone))
    agents = done.agents
    if as_json:
        print_json(done._asdict())
    else:
        say(f"revoked: {plural(done.revoked, 'agent key')}")
        if done.missed:
            say(f"not revoked: {plural(done.missed, 'key')}, because the agents changed meanwhile; run this again")
        say(_agents_line(agents))
    raise SystemExit(FOUND if done.missed + agents.former + agents.unknown + agents.unreadable else 0)


async def _survey(
    settings: "Settings", pool: "AsyncConnectionPool", progress: "Progress"
) -> "tuple[KeyCounts, AgentTokens]":
    from events import rewrapping
    from hydracore import reissuing

    progress.begin(await rewrapping.count_keys(pool) + await reissuing.count(pool))
    keys = await rewrapping.count_by_master_key(pool, settings.master_keys, progress.advance)
    async with _reissuer(settings, pool) as reissuer:
        return keys, await reissuer.survey(progress.advance)


async def _rewrap(settings: "Settings", pool: "AsyncConnectionPool", progress: "Progress") -> "tuple[int, KeyCounts]":
    from events import rewrapping

    await _refuse_another_installations_key(settings, pool)
    progress.begin(2 * await rewrapping.count_keys(pool))
    done = await rewrapping.rewrap(pool, settings.master_keys, progress.advance)
    return done, await rewrapping.count_by_master_key(pool, settings.master_keys, progress.advance)


async def _reissue(
    settings: "Settings", pool: "AsyncConnectionPool", progress: "Progress", *, everyone: bool
) -> "Reissued":
    from hydracore import reissuing

    await _refuse_another_installations_key(settings, pool)
    progress.begin(await reissuing.count(pool))
    async with _reissuer(settings, pool) as reissuer:
        is_due = reissuing.has_key if everyone else reissuing.is_stale
        return await reissuer.reissue(progress.advance, is_due=is_due)


async def _refuse_another_installations_key(settings: "Settings", pool: "AsyncConnectionPool") -> None:
    """Refuse the master key of another installation: the parts could not use what it wraps or derives."""
    from events.errors import MasterKeyWrong
    from events.keys import Keyring

    try:
        await Keyring(pool, master_keys=settings.master_keys).check()
    except MasterKeyWrong as error:
        raise click.UsageError(str(error)) from None


@asynccontextmanager
async def _reissuer(settings: "Settings", pool: "AsyncConnectionPool") -> "AsyncGenerator[Reissuer]":
    from events.store import EventStore
    from hydracore.clock import now_ms
    from hydracore.reissuing import Reissuer
    from projections.inline import inline_projections

    store = EventStore(pool, inline=inline_projections())
    try:
        yield Reissuer(pool, store, settings.master_keys, actor=operator(), now_ms=now_ms)
    finally:
        await store.close()


def _keys_line(keys: "KeyCounts") -> str:
    return _line(
        "customers' keys",
        (keys.present, "wrapped with the present master key"),
        (keys.former, "with a former one"),
        (keys.unreadable, "that no configured master key decrypts"),
    )


def _agents_line(agents: "AgentTokens") -> str:
    return _line(
        "agents",
        (agents.present, "with tokens from the present master key"),
        (agents.former, "from a former one"),
        (agents.unknown, "from an unknown one"),
        (agents.awaited, "yet to fetch new ones"),
        (agents.passing, "being created or deleted"),
        (agents.unreadable, "whose history cannot be read"),
    )


def _line(what: str, first: tuple[int, str], *others: tuple[int, str]) -> str:
    """The first count, and those of the others that are not 0."""
    return f"{what}: " + ", ".join(f"{number} {which}" for number, which in (first, *(o for o in others if o[0])))
