"""For the `projections` commands: a connection as the tables' owner, and failures as one line with an exit status."""

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from hydracore.cli.exit_status import BUSY, FOUND, NOT_DONE
from hydracore.cli.printing import say
from hydracore.cli.running import load, on_connection
from hydracore.signals import run_to_completion

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from hydracore.cli.projections_view import Failure
    from hydracore.settings import Settings
    from projections.generations import Generation
    from projections.report import Report

T = TypeVar("T")


def owner_conninfo(settings: "Settings") -> str:
    """The connection string for the tables' owner.

    Without a TCP timeout: a server that takes in many rows may not read for a while.
    """
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    from hydracore.db.pool import REQUIRED_OPTIONS, conninfo

    options = str(conninfo_to_dict(settings.database_url).get("options") or "")
    if settings.database_role:
        # With a role there is no pooler, which might refuse the options.
        options = f"{REQUIRED_OPTIONS} {options}".strip()
    without_timeout = make_conninfo(settings.database_url, tcp_user_timeout="0", options=options)
    return conninfo(without_timeout, role="", application="hydracore-projections")


async def statuses(connection: "AsyncConnection") -> Any:
    from projections.operations import status

    return await status(connection)


async def projection_names(connection: "AsyncConnection") -> list[str]:
    """Every projection of this code, and every other one that has a generation."""
    from projections import generations
    from projections.registry import projections as known

    found = await generations.all_in_states(connection, "live", "previous", *generations.UNFINISHED)
    return list(dict.fromkeys([*known(), *(one.name for one in found)]))


def known_name(name: str) -> str:
    """`name`, if it is one of `projection_names`; otherwise the command ends with a usage error."""
    return name if name in on_database(projection_names) else refuse_unknown(name)


def on_database(work: "Callable[[AsyncConnection], Coroutine[Any, Any, T]]") -> T:
    """The result of `work` on a connection as the owner. A failure becomes one line and an exit status."""
    settings = load()

    async def connected() -> T:
        # Within the coroutine, so that an invalid URL is reported as any other failure.
        return await on_connection(owner_conninfo(settings), settings, work)

    return run(connected())


def check_database() -> None:
    """Check that the database can be used. A failure becomes one line and an exit status."""

    async def nothing_else(_connection: "AsyncConnection") -> None:
        pass

    on_database(nothing_else)


def check_direct_connection(settings: "Settings") -> None:
    """The same, and refuse a pooler in transaction mode.

    The commands hold a lock of their session, and such a pooler shares sessions.
    """
    from hydracore.db.direct import require_direct

    check_database()
    run(require_direct(settings, owner_conninfo(settings)))


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. A failure becomes one line and an exit status."""
    from hydracore.cli.projections_view import Failure

    done = run_for_projection("", work)
    if isinstance(done, Failure):
        raise SystemExit(done.status)
    return done


def run_for_projection(name: str, work: Coroutine[Any, Any, T]) -> "T | Failure":
    """The result of `work` for the projection `name`. A failure is printed at once in one line, and returned."""
    import psycopg

    from events.errors import EventsError
    from hydracore.cli.projections_view import Failure
    from hydracore.db.error_text import one_line
    from hydracore.db.readiness import DatabaseUnusable
    from projections.errors import GenerationInUse, RebuildBusy, RebuildError

    try:
        return run_to_completion(work)
    except (RebuildError, EventsError, DatabaseUnusable, psycopg.Error) as error:
        status = BUSY if isinstance(error, RebuildBusy | GenerationInUse) else NOT_DONE
        failure = Failure(name, one_line(error), status)
    say(f"hydracore: {failure.error}", err=True)
    return failure


def exit_with_worst_status(outcomes: "Sequence[Report | Generation | Failure]") -> None:
    from hydracore.cli.projections_view import Failure
    from projections.report import Report

    found = {one.status for one in outcomes if isinstance(one, Failure)}
    if any(isinstance(one, Report) and one.drifted and not one.swapped for one in outcomes):
        found.add(FOUND)
    for status in (NOT_DONE, BUSY, FOUND):
        if status in found:
            raise SystemExit(status)


def refuse_unknown(name: str) -> NoReturn:
    from projections.registry import projections

    raise click.UsageError(f"There is no projection {name!r}; the projections are {', '.join(sorted(projections()))}.")
