"""`audit export` and `audit verify-export`: write the log with its proof to a file, and check it without a database."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click
import msgspec

from hydracore.cli.audit import public_key_option, public_keys_of
from hydracore.cli.exit_status import FOUND
from hydracore.cli.printing import Text, brief, full_speed_option, json_option, print_json, quoted, say
from hydracore.cli.running import check_database, conninfo, failures, load
from hydracore.wording import plural

if TYPE_CHECKING:
    from hydracore.audit.export_check import Report
    from hydracore.audit.export_files import Format
    from hydracore.audit.export_writer import ExportReport


@click.command()
@click.argument("instance", type=click.UUID, required=False)
@click.option("--instance", "named", type=click.UUID, hidden=True)  # An earlier spelling of INSTANCE.
@click.option("--tenant", type=Text(), help="Export all instances of this tenant.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "parquet"]),
    default="jsonl",
    show_default=True,
    help="File format: JSON Lines or Parquet.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The file to write. It appears once it is complete.",
)
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@click.option("--sealed", is_flag=True, help="Export only up to the last seal, so that every event can be proven.")
@full_speed_option
@json_option
def export(
    *,
    instance: UUID | None,
    named: UUID | None,
    tenant: str | None,
    form: "Format",
    output: Path,
    force: bool,
    sealed: bool,
    full_speed: bool,
    as_json: bool,
) -> None:
    """Export all events of an instance or a tenant to a file.

    The file also has the proofs that `verify-export` checks. Personal data stays encrypted.

    The system may be in use meanwhile: the file has the events up to the start of the export.
    """
    if sum(given is not None for given in (instance, named, tenant)) != 1:
        raise click.UsageError("Give either INSTANCE or --tenant.")
    if output == Path("-"):
        raise click.UsageError("--output must be a file: exporting to standard output is not supported.")
    from hydracore.audit import exporting
    from hydracore.cli.audit_view import progress_bar
    from hydracore.signals import interrupted_by_signals

    settings = load()
    check_database(settings)
    request = exporting.Request(
        conninfo=conninfo(settings),
        prepare_threshold=settings.prepare_threshold,
        output=output,
        exported_at=datetime.now(UTC),
        tenant_id=tenant,
        instance_id=instance or named,
        format=form,
        replace=force,
        sealed_only=sealed,
        key=settings.seal_key,
        full_speed=full_speed,
    )
    with failures():
        with interrupted_by_signals(), progress_bar("exporting") as progress:
            exported = exporting.export(request, progress)
        _show_export(exported, as_json=as_json)


@click.command("verify-export")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@public_key_option
@click.option(
    "--seals",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Copy of the seals to compare with, kept outside the database.",
)
@click.option(
    "--allow-unsigned",
    is_flag=True,
    help="Accept an export without a signature over the whole file. Events cut off at its end are then not detected.",
)
@json_option
def verify_export(
    *, file: Path, public_keys: tuple[str, ...], seals: Path | None, allow_unsigned: bool, as_json: bool
) -> None:
    """Verify an export against the seals in it.

    Needs no database and no settings.

    Exit status: 0 no findings; 1 findings; 3 the export could not be verified.
    """
    from hydracore.audit import export_check
    from hydracore.audit.seal_file import SealFile
    from hydracore.cli.audit_view import progress_bar

    *former_keys, public_key = public_keys_of(public_keys, load(require=())) or (None,)
    request = export_check.Request(
        path=file,
        public_key=public_key,
        former_keys=tuple(former_keys),
        seals=None if seals is None else SealFile(seals),
        allow_unsigned=allow_unsigned,
    )
    with failures():
        with progress_bar("verifying") as progress:
            report = export_check.verify_export(request, progress)
        _show_report(report, as_json=as_json)
    raise SystemExit(FOUND if report.findings else 0)


def _show_export(exported: "ExportReport", *, as_json: bool) -> None:
    if as_json:
        print_json(exported)
        return
    say(
        f"{exported.output}: {plural(exported.events, 'event')} in {plural(exported.commands, 'command')} of "
        f"{plural(exported.streams, 'instance')}, {_counts_text(exported)}, {plural(exported.size_bytes, 'byte')} ({exported.seconds:.1f} s)"
    )
    if exported.unsealed and not exported.signed:
        are = "is" if exported.unsealed == 1 else "are"
        say(
            f"note: {plural(exported.unsealed, 'event')} {are} not sealed yet and cannot be proven: "
            "export with --sealed, or run `hydracore audit seal` first"
        )
    if not exported.signed:
        say(
            "note: the file is not signed, so verify-export needs --allow-unsigned: set HYDRACORE_SEAL_KEY to sign exports"
        )


def _show_report(report: "Report", *, as_json: bool) -> None:
    from hydracore.cli.audit_view import say_findings

    if as_json:
        shown: dict[str, Any] = msgspec.to_builtins(report)
        print_json({"ok": not report.findings, **shown})
        return
    say_findings(report.findings, report.notes)
    if report.instance_id is None:
        whose = f"{plural(report.streams, 'instance')} of tenant {brief(quoted(report.tenant_id)) if report.tenant_id else 'unknown'}"
    else:
        whose = f"instance {report.instance_id}"
    say(
        f"{plural(len(report.findings), 'finding')} in {plural(report.events, 'event')} and "
        f"{plural(report.commands, 'command')} of {whose}, {_counts_text(report)} "
        f"({report.seconds:.1f} s)"
    )


def _counts_text(counted: "ExportReport | Report") -> str:
    steps, lanes, seals = plural(counted.steps, "step"), plural(counted.lanes, "lane"), plural(counted.seals, "seal")
    return f"{steps} of others in {lanes}, {seals}"
