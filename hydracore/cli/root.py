"""The group of all commands, and how errors are printed: one clear line each.

The exit status is 2 for what the caller can fix. The others are in `hydracore/cli/exit_status.py`.
"""

import io
import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Final, cast

import click

from hydracore.catalogue_file import CatalogueError
from hydracore.cli.activity import activity
from hydracore.cli.audit import audit
from hydracore.cli.audit_erase import erase_customer
from hydracore.cli.audit_export import export, verify_export
from hydracore.cli.audit_history import diff, show, state
from hydracore.cli.credentials import api_key, token
from hydracore.cli.database import db
from hydracore.cli.demo import demo
from hydracore.cli.exit_status import BROKEN_PIPE, NOT_DONE
from hydracore.cli.fleet import fleet
from hydracore.cli.master_key import master_key
from hydracore.cli.parts import agent, api, cloudsim, modelsim, relay, sweep, worker
from hydracore.cli.printing import escaped_lines, printable_line, say
from hydracore.cli.projections import projections
from hydracore.cli.stuck import stuck
from hydracore.cli.up import up
from hydracore.embedded.errors import EmbeddedError, HomeInUse, HomeUnusable, PartFailed, PortTaken, StoresRefused
from hydracore.files import DISK_ERRNOS, describe_disk_error
from hydracore.settings import SettingsError
from hydracore.signals import INTERRUPTED

#: Errors that the caller can fix, like a wrong option.
USAGE_ERRORS: Final = (HomeInUse, HomeUnusable, PortTaken)


class Commands(click.Group):
    """A group that prints errors which say what to do, and lets all others raise with a traceback."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        _configure_output()
        with _failures():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> None:
        with _failures():
            super().invoke(ctx)


def _configure_output() -> None:
    """Keep the terminal's encoding and psycopg's logging from disturbing a command's output."""
    if (output := _output()) is not None:
        output.reconfigure(errors="backslashreplace")
    # Commands report broken connections and retries in one line themselves. A part's own logging still gets the
    # records.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())


@contextmanager
def _failures() -> Generator[None]:
    try:
        yield
    except (SettingsError, CatalogueError) as error:
        _fail(error.problems, status=2)
    except KeyboardInterrupt as error:
        # Not click's 1, which would mean for an audit that it has found something.
        _fail((str(error) or "interrupted",), status=INTERRUPTED)
    except click.UsageError as error:
        # click prints the usage with it. Its own subclasses are about what was typed, and are left alone.
        if type(error) is not click.UsageError:
            raise
        raise click.UsageError(printable_line(error.message), error.ctx) from None
    except click.ClickException as error:
        _fail((error.message,), status=NOT_DONE)
    except PartFailed as error:
        _fail((str(error), *(f"  | {line}" for line in escaped_lines(error.log_tail).splitlines())), status=NOT_DONE)
    except StoresRefused as error:
        _fail(tuple(map(str, error.refused)), status=NOT_DONE)
    except EmbeddedError as error:
        _fail((str(error),), status=2 if isinstance(error, USAGE_ERRORS) else NOT_DONE)
    except BrokenPipeError:
        _fail((), status=BROKEN_PIPE)
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        _fail((describe_disk_error(error),), status=NOT_DONE)
    finally:
        _flush_output()


def _flush_output() -> None:
    """Flush standard output. If that fails, redirect it, because Python would try again at exit, and exit with 120."""
    if (output := _output()) is not None:
        try:
            output.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())


def _output() -> "io.TextIOWrapper[BinaryIO] | None":
    """Standard output; None where it is closed, or replaced by something else."""
    return cast("io.TextIOWrapper[BinaryIO]", sys.stdout) if isinstance(sys.stdout, io.TextIOWrapper) else None


def _fail(lines: tuple[str, ...], *, status: int) -> None:
    with suppress(OSError):  # Standard error may be closed too.
        for line in lines:
            say(f"hydracore: {line}", err=True)
    sys.exit(status)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hydracore")
def main() -> None:
    """HydraCore: an event-sourced control plane for hosted AI agents."""


for command in (show, state, diff, export, verify_export, erase_customer):
    audit.add_command(command)
for command in (
    up,
    demo,
    api,
    relay,
    worker,
    cloudsim,
    modelsim,
    agent,
    db,
    projections,
    audit,
    fleet,
    activity,
    stuck,
    sweep,
    api_key,
    token,
    master_key,
):
    main.add_command(command)
