"""`audit`: what happened, who did it, and proof that nobody has changed it since."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from events.ids import LANES
from hydracore import settings as configuration
from hydracore.cli.exit_status import FOUND
from hydracore.cli.printing import full_speed_option, json_option
from hydracore.cli.running import check_database, conninfo, failures, load, on_database
from hydracore.setting_types import KEY_BYTES
from hydracore.settings import Settings

if TYPE_CHECKING:
    from hydracore.audit.seal_file import SealFile
    from hydracore.audit.verifying import Report

#: `--strict` wants a seal in the copy once this many seal intervals have passed since it was made.
COPIED_WITHIN_INTERVALS: Final = 2

#: The note of an audit without a copy of the seals, which cannot see that the newest seals are gone.
NO_COPY: Final = "No copy of the seals was compared (--seals): removal of the newest events together with their seals would not be detected"

public_key_option = click.option(
    "--public-key",
    "public_keys",
    multiple=True,
    help="Public key of the seals' signatures in base64url, as printed by `audit seal`. Repeatable: if the key was "
    "replaced, give all keys, oldest first.",
)


@click.group()
def audit() -> None:
    """Show, verify, seal and export the log; erase customers."""


@audit.command()
@click.option(
    "--lane", "lanes", type=click.IntRange(0, LANES - 1), multiple=True, help="Verify only this lane. Repeatable."
)
@click.option("--since-seal", is_flag=True, help="Verify only what follows the last valid seal.")
@click.option(
    "--seals",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Copy of the seals, kept outside the database; default: HYDRACORE_SEAL_FILE.",
)
@public_key_option
@click.option("--replay/--no-replay", default=True, show_default=True, help="Compare the read tables with the log.")
@click.option(
    "--strict", is_flag=True, help="Report everything that could not be compared as a finding, not as a note."
)
@click.option(
    "--workers",
    type=click.IntRange(1, LANES),
    help="Number of processes; default: for a long log one per core, at most 4; otherwise 1.",
)
@full_speed_option
@json_option
def verify(
    *,
    lanes: tuple[int, ...],
    since_seal: bool,
    seals: Path | None,
    public_keys: tuple[str, ...],
    replay: bool,
    strict: bool,
    workers: int | None,
    full_speed: bool,
    as_json: bool,
) -> None:
    """Verify that the log was not tampered with.

    Recomputes all digests and links, checks all seals, and compares the read tables with the log.

    The system may be in use meanwhile: the audit pauses for writers.

    Exit status: 0 no findings; 1 findings; 3 the audit could not be completed.
    """
    if strict and (lanes or since_seal or not replay):
        raise click.UsageError(
            "--strict compares everything: do not combine it with --lane, --since-seal or --no-replay."
        )
    from hydracore.audit import verifying
    from hydracore.cli.audit_view import progress_bar, show_report
    from hydracore.signals import interrupted_by_signals

    settings = load()
    check_database(settings)
    *former_keys, public_key = public_keys_of(public_keys, settings) or (None,)
    copy = _copy_of_seals(seals, settings)
    request = verifying.Request(
        conninfo=conninfo(settings),
        prepare_threshold=settings.prepare_threshold,
        lanes=tuple(sorted(set(lanes))) or tuple(range(LANES)),
        since_seal=since_seal,
        replay=replay,
        seals=copy,
        copied_before=datetime.now(UTC) - timedelta(seconds=COPIED_WITHIN_INTERVALS * settings.seal_interval_s)
        if strict
        else None,
        public_key=public_key,
        former_keys=tuple(former_keys),
        workers=workers,
        full_speed=full_speed,
    )
    with failures():
        with interrupted_by_signals(), progress_bar("verifying") as progress:
            report = verifying.verify(request, progress)
        _note_what_was_trusted(report, copy, strict=strict)
        show_report(report, as_json=as_json)
    raise SystemExit(FOUND if report.findings else 0)


def _note_what_was_trusted(report: "Report", copy: "SealFile | None", *, strict: bool) -> None:
    if copy is None:
        report.notes.append(NO_COPY)
    if strict:
        report.turn_notes_into_findings()
    if copy is not None:
        # No findings, even with `strict`: a line that a crash has cut off stays in the file for ever, and seals that are
        # missing or out of place are findings already.
        report.notes += copy.notes


def _copy_of_seals(given: Path | None, settings: Settings) -> "SealFile | None":
    """The given file, or the file that this installation keeps; None where it keeps none, or none yet."""
    from hydracore.audit.seal_file import SealFile, existing_copy

    if given is not None:
        return SealFile(given)
    if settings.seal_file is None:
        return None
    with failures():
        return existing_copy(settings.seal_file, conninfo(settings))


@audit.command()
@json_option
def seal(*, as_json: bool) -> None:
    """Seal the log now, without waiting for the relay to do so."""
    from hydracore.audit.sealing import sealer_of
    from hydracore.cli.audit_view import show_seal

    settings = load(require=configuration.SEAL_NEEDS)
    made = on_database(settings, lambda pool: sealer_of(pool, settings).seal())
    public_key = public_keys_of((), settings)[-1]
    with failures():
        show_seal(made, public_key=public_key, as_json=as_json)


def public_keys_of(given: Sequence[str], settings: Settings) -> tuple[bytes, ...]:
    """The keys that seals must be signed with, oldest first: the given ones, or those of this installation.

    Empty where any key will do.
    """
    import binascii

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not given:
        if not settings.seal_key:
            return settings.seal_keys_former
        own = Ed25519PrivateKey.from_private_bytes(settings.seal_key).public_key().public_bytes_raw()
        return (*settings.seal_keys_former, own)
    try:
        keys = tuple(map(configuration.decode_key, given))
    except binascii.Error:  # Not in base64url, or not even in ASCII.
        keys = (b"",)
    if any(len(key) != KEY_BYTES for key in keys):
        raise click.UsageError("--public-key must be 32 bytes in base64url.")
    return keys
