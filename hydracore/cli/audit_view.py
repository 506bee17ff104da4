"""How audits are printed on a terminal, and as JSON."""

import base64
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from events.seal import Seal
from events.verification_findings import Finding
from hydracore.audit.verifying import Progress, Report
from hydracore.cli.printing import print_json, say
from hydracore.wording import plural


def show_report(report: Report, *, as_json: bool) -> None:
    if as_json:
        print_json({"ok": not report.findings, **msgspec.to_builtins(report)})
        return
    say_findings(report.findings, report.notes)
    rate = report.events / report.seconds if report.seconds else 0.0
    rested = f", {report.rested_s:.1f} s of it paused for writers" if report.rested_s else ""
    say(
        f"{plural(len(report.findings), 'finding')} in {plural(report.events, 'event')} and "
        f"{plural(report.commands, 'command')} of {plural(report.streams, 'stream')} in {plural(report.lanes, 'lane')}, "
        f"{plural(report.seals, 'seal')}, {plural(len(report.tables), 'read table')} "
        f"({report.seconds:.1f} s{rested}, {rate:.0f} events/s)"
    )


def say_findings(findings: Iterable[Finding], notes: Iterable[str]) -> None:
    """Print a line for each. `say` shortens long ones, so that the lines before stay visible."""
    for finding in findings:
        say(f"{finding.place}: {finding.kind}: {finding.what}")
    for note in notes:
        say(f"note: {note}")


def show_seal(seal: Seal | None, *, public_key: bytes, as_json: bool) -> None:
    """Print the seal, if there was anything to seal, and always the public key, which auditors need."""
    key = base64.urlsafe_b64encode(public_key).decode()
    if as_json:
        print_json({"number": None, "public_key": key} if seal is None else {**_seal(seal), "heads": seal.heads})
    elif seal is None:
        say(f"no new events since the last seal; public key {key}")
    else:
        shown = _seal(seal)
        say(f"seal {seal.number} over {plural(shown['events'], 'event')} at {shown['sealed_at']}")
        say(f"root {shown['root']}, public key {key}")


def _seal(seal: Seal) -> dict[str, Any]:
    return {
        "number": seal.number,
        "sealed_at": seal.sealed_at.isoformat(),
        "events": sum(seal.heads),
        "root": seal.root.hex(),
        "public_key": base64.urlsafe_b64encode(seal.public_key).decode(),
        "signature": base64.urlsafe_b64encode(seal.signature).decode(),
    }


@contextmanager
def progress_bar(what: str) -> Generator[Progress]:
    """Show the progress on standard error if that is a terminal, otherwise nothing."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bar(bars, what)


class _Bar(Progress):
    def __init__(self, bars: Bars, what: str) -> None:
        self._bars = bars
        self._task = bars.add_task(what, total=None)

    def begin(self, total: int) -> None:
        self._bars.update(self._task, total=total)

    def advance(self, done: int) -> None:
        self._bars.advance(self._task, done)
