"""How projections are printed on a terminal, and as JSON."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hydracore.cli.printing import print_json, say
from hydracore.wording import plural
from projections.generations import Generation
from projections.generations import Progress as Folded
from projections.operations import Intervention, ProjectionStatus
from projections.rebuild import ProgressCallbacks
from projections.report import Report

#: The most differing rows that are printed. JSON has all that were listed.
DRIFT_SHOWN = 20

#: The columns of the list, which fits 80 columns. Columns of words are aligned to the left.
_COLUMNS: Final = ("name", "kind", "version", "generation", "behind", "seconds", "events/s", "parked")
_WORDS: Final = frozenset({"name", "kind"})


def show_list(found: Sequence[ProjectionStatus], *, as_json: bool) -> None:
    if as_json:
        print_json([_summary(one) for one in found])
        return
    title, *rows = _aligned([_COLUMNS, *map(_row, found)])
    say(title, bold=True)
    for row in rows:
        say(row)
    for one in found:
        if one.others:
            kept = ", ".join(f"{other.number} ({other.state})" for other in one.others)
            say(f"{one.name}: also kept: {kept}")
    for one in found:
        if one.missing:
            say(f"{one.name}: {_missing_text(one)}")


def show_status(found: Sequence[ProjectionStatus], *, as_json: bool) -> None:
    """Print a line per projection, and a line for each of its lanes that is behind."""
    if as_json:
        print_json([_summary(one) | {"lanes": one.lanes} for one in found])
        return
    for one in found:
        rate = f"{one.events_per_s:.0f} events/s"
        waits = f"; version {one.code_version} needs `rebuild`" if one.outdated else ""
        if one.missing:
            waits = f"; {_missing_text(one)}"
        built = f"version {_text(one.version)}, generation {_text(one.generation)}"
        say(f"{one.name}: {built}, {one.behind} behind, {rate}{waits}")
        for lane in one.lanes:
            if lane.behind:
                parked = "" if lane.error is None else f", parked at event {lane.event}: {lane.error}"
                say(f"  lane {lane.lane}: {lane.behind} behind, {lane.behind_s:.1f} s{parked}")
        if one.parked:
            say(
                f"  fix the cause and run `hydracore projections retry {one.name}`, or skip the event with `hydracore projections skip {one.name}`"
            )


def show_intervention(done: Intervention, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
    else:
        past = {"skip": "is skipped", "unskip": "will be applied by the next rebuild", "retry": "will be retried"}[
            done.action
        ]
        why = f" ({done.error})" if done.error else ""
        say(f"event {done.seq} of lane {done.lane} {past} in version {done.version} of {done.name}{why}")


class Failure(msgspec.Struct, frozen=True):
    """A command failed for the projection `name`. `status`: the exit status for that."""

    name: str
    error: str
    status: int


def show_report(report: Report | Failure, *, dry_run: bool) -> None:
    """Print the outcome for one projection. A `Failure` was printed before."""
    if isinstance(report, Failure):
        return
    say(_report_text(report, dry_run=dry_run))
    for drift in report.drift[:DRIFT_SHOWN]:
        say(f"  {drift.table} {_json(drift.key)}: live {_json(drift.live)}, the log says {_json(drift.fresh)}")
    if report.drifted > DRIFT_SHOWN:
        say(f"  ... and {report.drifted - DRIFT_SHOWN} more (--json has up to {len(report.drift)})")


def show_rollback(report: Report) -> None:
    """Print what the rollback did, and that a second one would undo it."""
    name, left = report.name, report.generation_before
    gone = f"; {' and '.join(report.missing)} was missing" if report.missing else ""
    caught_up = f"{plural(report.events, 'event')} applied to catch up"
    say(
        f"{name}: generation {report.generation} is live again in place of {left}; {caught_up}{gone}; {_pause_text(report)}"
    )
    if not report.missing:
        say(
            f"  another rollback would return to generation {left}, never to one before {report.generation};"
            f" to drop generation {left}, run `hydracore projections prune {name}`"
        )


def show_pruned(pruned: Sequence[Generation | Failure], *, as_json: bool) -> None:
    if as_json:
        print_json(pruned)
        return
    for one in pruned:
        if not isinstance(one, Failure):
            say(f"dropped generation {one.number} of {one.name} ({one.state})")
    if not pruned:
        say("nothing to drop")


@contextmanager
def progress(name: str) -> Generator[ProgressCallbacks]:
    """A progress bar on standard error if that is a terminal, otherwise nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("events"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)

        def phase(text: str) -> None:
            bar.update(task, description=f"{name}: {text}")

        def folded(now: Folded) -> None:
            bar.update(task, total=now.events, completed=now.events_folded)

        yield ProgressCallbacks(phase=phase, folded=folded)


def _report_text(report: Report, *, dry_run: bool) -> str:
    # An earlier run has folded some or all of a resumed build, so that this run's time gives no rate.
    rate = f", {report.events / report.fold_s:.0f} events/s" if report.fold_s and not report.resumed else ""
    differ = "differs" if report.drifted == 1 else "differ"
    compared = f"{plural(report.rows_compared, 'row')} compared, {report.drifted} {differ}"
    if report.left_out:
        compared += f"; NOT compared, because their keys differ: {', '.join(report.left_out)}"
    if report.missing:
        compared += f"; {' and '.join(report.missing)} was missing"
    if report.rested_s:
        compared += f"; paused {report.rested_s:.1f} s for writers, in addition to pauses while folding"
    events = plural(report.events, "event")
    if dry_run:
        kept = f"; the interrupted build of generation {report.generation} is kept" if report.resumed else ""
        return f"{report.name}: {events} folded{rate}; {compared}; no live table was changed{kept}"
    if report.stopped_s is None:
        return f"{report.name}: {compared}; NOT swapped: see `hydracore audit verify` for the cause, or replace the live table with --accept-drift"
    return f"{report.name}: generation {report.generation} is live; {events}{rate}; {compared}; {_pause_text(report)}"


def _pause_text(report: Report) -> str:
    assert report.stopped_s is not None, "it was swapped"
    return f"the swap held up writers for {1000 * report.stopped_s:.0f} ms (try {report.tries})"


def _missing_text(one: ProjectionStatus) -> str:
    return f"{' and '.join(one.missing)} is missing: `rebuild {one.name} --accept-drift` recreates it"


def _summary(one: ProjectionStatus) -> dict[str, Any]:
    parts = {name: getattr(one, name) for name in one.__struct_fields__ if name != "lanes"}
    return parts | {"behind": one.behind, "behind_s": one.behind_s, "parked": one.parked, "outdated": one.outdated}


def _text(number: int | None) -> str:
    return "none" if number is None else str(number)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _row(one: ProjectionStatus) -> tuple[str, ...]:
    return (
        one.name,
        one.kind,
        f"{_text(one.version)} -> {one.code_version}" if one.outdated else _text(one.version),
        _text(one.generation),
        str(one.behind),
        f"{one.behind_s:.1f}",
        f"{one.events_per_s:.0f}",
        str(len(one.parked)),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines with aligned columns.

    A terminal wraps lines that are too long. They are not cut, so that names can be copied.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligns = ["<" if column in _WORDS else ">" for column in rows[0]]
    return [
        " ".join(f"{cell:{align}{width}}" for cell, align, width in zip(row, aligns, widths, strict=True))
        for row in rows
    ]
