"""How projections look on a terminal, and as JSON."""

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hydracore.cli.printing import print_json
from projections.care import Intervention, ProjectionStatus
from projections.generations import Generation
from projections.generations import Progress as Folded
from projections.rebuild import Report, Steps

#: How many rows that differ are shown to the eye; JSON has them all.
DRIFT_SHOWN = 20


def show_list(found: Sequence[ProjectionStatus], *, as_json: bool) -> None:
    if as_json:
        print_json([_summary(one) for one in found])
        return
    table = _table("name", "kind", "version", "generation", "behind", "seconds", "events/s", "parked", "also kept")
    for one in found:
        version = f"{one.version} -> {one.code_version}" if one.outdated else str(one.version)
        table.add_row(
            one.name,
            one.kind,
            version,
            str(one.generation),
            str(one.behind),
            f"{one.behind_s:.1f}",
            f"{one.events_per_s:.0f}",
            str(len(one.parked)),
            ", ".join(f"{other.number} ({other.state})" for other in one.others) or "-",
        )
    _console().print(table)


def show_status(found: Sequence[ProjectionStatus], *, as_json: bool) -> None:
    """Per projection the lanes that are behind, or, where none is, one line."""
    if as_json:
        print_json([_summary(one) | {"lanes": one.lanes} for one in found])
        return
    for one in found:
        rate = f"{one.events_per_s:.0f} events/s"
        click.echo(f"{one.name}: version {one.version}, generation {one.generation}, {one.behind} behind, {rate}")
        for lane in one.lanes:
            if lane.behind:
                parked = "" if lane.error is None else f", parked at event {lane.seq + 1}: {lane.error}"
                click.echo(f"  lane {lane.lane}: {lane.behind} behind, {lane.behind_s:.1f} s{parked}")


def show_intervention(done: Intervention, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
    else:
        past = "skipped" if done.action == "skip" else "to be tried again"
        click.echo(f"event {done.seq} of lane {done.lane} is {past} in {done.name} ({done.error})")


def show_reports(reports: Sequence[Report], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(reports)
        return
    for report in reports:
        click.echo(_outcome(report, dry_run=dry_run))
        for drift in report.drift[:DRIFT_SHOWN]:
            click.echo(
                f"  {drift.table} {_json(drift.key)}: live {_json(drift.live)}, the log says {_json(drift.fresh)}"
            )
        if report.drifted > DRIFT_SHOWN:
            click.echo(f"  ... and {report.drifted - DRIFT_SHOWN} more (--json has up to {len(report.drift)})")


def show_pruned(dropped: Sequence[Generation], *, as_json: bool) -> None:
    if as_json:
        print_json(dropped)
        return
    for one in dropped:
        click.echo(f"dropped generation {one.number} of {one.name} ({one.state})")
    if not dropped:
        click.echo("nothing to drop")


@contextmanager
def progress(name: str) -> Generator[Steps]:
    """A bar on standard error while it is a terminal; otherwise nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("events"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)

        def phase(text: str) -> None:
            bar.update(task, description=f"{name}: {text}")

        def folded(now: Folded) -> None:
            bar.update(task, total=now.events, completed=now.events_folded)

        yield Steps(phase=phase, folded=folded)


def _outcome(report: Report, *, dry_run: bool) -> str:
    rate = f", {report.events / report.fold_s:.0f} events/s" if report.fold_s else ""
    compared = f"{report.rows_compared} rows compared, {report.drifted} differ"
    if dry_run:
        return f"{report.name}: {report.events} events folded{rate}; {compared}; nothing changed"
    if report.stopped_s is None:
        return f"{report.name}: {compared}; NOT swapped"
    stopped = f"stopped {1000 * report.stopped_s:.0f} ms in try {report.tries}"
    return f"{report.name}: generation {report.generation} is live; {report.events} events{rate}; {compared}; {stopped}"


def _summary(one: ProjectionStatus) -> dict[str, Any]:
    parts = {name: getattr(one, name) for name in one.__struct_fields__ if name != "lanes"}
    return parts | {"behind": one.behind, "behind_s": one.behind_s, "parked": one.parked, "outdated": one.outdated}


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("name", "kind", "also kept") else "right")
    return table


def _console() -> Console:
    # Without a terminal there is no width to fit into.
    return Console(width=None if sys.stdout.isatty() else 160)
