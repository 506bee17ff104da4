"""`projections`: show how far the read tables are, rebuild them from the log, and get parked lanes going.

A command on several projections does each of them and reports on each. Its exit status is 3, 4 or 1, the first of these
that occurred.
"""

import os
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from events.ids import LANES
from hydracore import settings as configuration
from hydracore.cli.exit_status import PARKED
from hydracore.cli.printing import full_speed_option, json_option, print_json, say
from hydracore.cli.projections_interventions import retry, skip, unskip
from hydracore.cli.projections_running import (
    check_direct_connection,
    exit_with_worst_status,
    known_name,
    on_database,
    owner_conninfo,
    projection_names,
    refuse_unknown,
    run,
    run_for_projection,
    statuses,
)
from hydracore.cli.running import load
from hydracore.signals import interrupted_by_signals

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from hydracore.cli.projections_view import Failure
    from hydracore.settings import Settings
    from projections.definition import Projection
    from projections.generations import Generation
    from projections.rebuild import Folding
    from projections.report import Report


@click.group()
@click.pass_context
def projections(context: click.Context) -> None:
    """Inspect, repair and rebuild the read tables."""
    # Also covers the time between two event loops, in which much is imported and the next projection begins.
    context.with_resource(interrupted_by_signals())


for command in (skip, unskip, retry):
    projections.add_command(command)


@projections.command("list")
@json_option
def list_projections(*, as_json: bool) -> None:
    """List all projections, and how far behind the log they are.

    Also shows versions, live generations, and other generations that are kept.
    """
    from hydracore.cli.projections_view import show_list

    found = on_database(statuses)
    show_list(found, as_json=as_json)


@projections.command()
@click.argument("name", required=False)
@json_option
def status(*, name: str | None, as_json: bool) -> None:
    """Show lanes that are behind or parked.

    A parked lane has stopped at an event that failed; the error is shown.

    Exit status: 5 if any lane is parked.
    """
    from hydracore.cli.projections_view import show_status

    found = on_database(statuses)
    if name is not None:
        found = [one for one in found if one.name == name] or refuse_unknown(name)
    show_status(found, as_json=as_json)
    if any(one.parked for one in found):
        raise SystemExit(PARKED)


@projections.command()
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Rebuild all projections, one after the other.")
@click.option("--outdated", is_flag=True, help="Rebuild those for which this release has a newer version.")
@click.option("--workers", type=click.IntRange(1, LANES), help="Number of local processes; default: one per core.")
@click.option("--dry-run", is_flag=True, help="Only build the table and compare its rows with the live one.")
@click.option(
    "--accept-drift",
    is_flag=True,
    help="Replace the live table even if it differs from the log or is missing.",
)
@click.option("--distributed", is_flag=True, help="Have the workers do it instead of local processes.")
@full_speed_option
@json_option
def rebuild(
    *,
    name: str | None,
    every: bool,
    outdated: bool,
    workers: int | None,
    dry_run: bool,
    accept_drift: bool,
    distributed: bool,
    full_speed: bool,
    as_json: bool,
) -> None:
    """Rebuild a read table from the log and swap it in.

    The live table is served until the swap. An interrupted rebuild is resumed.

    Exit status: 0 done; 1 the live table differs from the log; 3 failed; 4 another rebuild is running; 130
    interrupted.
    """
    from hydracore.cli.projections_view import show_report
    from projections import rebuild as building

    if sum((name is not None, every, outdated)) != 1:
        raise click.UsageError("Give one of NAME, --all and --outdated.")
    if distributed and (full_speed or workers is not None):
        raise click.UsageError(
            "--workers and --full-speed are about local processes: do not combine them with --distributed."
        )
    if dry_run and accept_drift:
        raise click.UsageError("--dry-run replaces no table: do not combine it with --accept-drift.")
    wanted = _selected(name, outdated=outdated)
    if not wanted and not as_json:
        say("nothing is outdated")
    needs = configuration.RELAY_NEEDS if distributed else configuration.DATABASE_NEEDS
    settings = load(require=needs)
    check_direct_connection(settings)
    folding = _folding(settings, distributed=distributed, workers=workers, full_speed=full_speed)
    build = building.dry_run if dry_run else partial(building.rebuild, accept_drift=accept_drift)
    build = partial(build, folding=folding, full_speed=full_speed)
    reports = list["Report | Failure"]()
    try:
        for one in wanted:
            reports.append(_build_with_progress(one, owner_conninfo(settings), build))
            if not as_json:
                show_report(reports[-1], dry_run=dry_run)
    finally:
        # Also after Ctrl-C, for the projections that were done before.
        if as_json:
            print_json(reports)
    exit_with_worst_status(reports)


@projections.command()
@click.argument("name")
@json_option
def rollback(*, name: str, as_json: bool) -> None:
    """Make the previous generation of a read table live again.

    It is first brought up to date with the log. The generation that was live becomes the previous one, so a second
    rollback undoes the first.
    """
    from hydracore.cli.projections_view import show_rollback
    from projections import generations
    from projections.rebuild import rollback as go_back
    from projections.registry import all_versions

    async def earlier(connection: "AsyncConnection") -> int | None:
        found = await generations.last_replaced(connection, name)
        return None if found is None else found.version

    known = all_versions().get(name) or refuse_unknown(name)
    version = on_database(earlier)
    projection = known.get(-1 if version is None else version, known[max(known)])
    settings = load()
    check_direct_connection(settings)
    report = run(go_back(owner_conninfo(settings), projection))
    if as_json:
        print_json([report])
    else:
        show_rollback(report)


@projections.command()
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Do so for all projections.")
@json_option
def prune(*, name: str | None, every: bool, as_json: bool) -> None:
    """Drop all generations of a read table that are not live.

    These are the previous generation, which `rollback` needs, and interrupted builds.
    """
    from hydracore.cli.projections_view import show_pruned
    from projections.rebuild import prune as drop

    if (name is not None) == every:
        raise click.UsageError("Give either NAME or --all.")
    settings = load()
    check_direct_connection(settings)
    pruned = list["Generation | Failure"]()
    for each in on_database(projection_names) if name is None else [known_name(name)]:
        dropped = run_for_projection(each, drop(owner_conninfo(settings), each))
        pruned += dropped if isinstance(dropped, list) else [dropped]
    show_pruned(pruned, as_json=as_json)
    exit_with_worst_status(pruned)


def _selected(name: str | None, *, outdated: bool) -> "list[Projection]":
    from projections.registry import projections as known

    code = known()
    if name is not None:
        return [code[name]] if name in code else refuse_unknown(name)
    if outdated:
        return [code[one.name] for one in on_database(statuses) if one.outdated]
    return list(code.values())


def _folding(settings: "Settings", *, distributed: bool, workers: int | None, full_speed: bool) -> "Folding":
    if distributed:
        from workers.distributed_folding import fold_distributed

        return fold_distributed(settings, lambda text: say(f"hydracore: {text}", err=True))
    from projections.processes import fold_in_processes

    return fold_in_processes(owner_conninfo(settings), workers=workers or os.cpu_count() or 1, full_speed=full_speed)


def _build_with_progress(
    projection: "Projection", database_url: str, build: "Callable[..., Coroutine[Any, Any, Report]]"
) -> "Report | Failure":
    """Build one projection, with a progress bar on a terminal."""
    from hydracore.cli.projections_view import progress

    with progress(projection.name) as callbacks:
        return run_for_projection(projection.name, build(database_url, projection, callbacks=callbacks))
