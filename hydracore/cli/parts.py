"""The parts, each on its own, as in production: `api`, `relay`, `worker`, `sweep`, `agent`, and the two simulators.

Settings are checked first, so that a missing one shows before anything is imported or changed.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import asdict

from hydracore import settings as configuration
from hydracore.cli.exit_status import FOUND, NOT_DONE
from hydracore.cli.printing import DeferredErrorOption, Folder, json_option, load_with_options, print_json, say
from hydracore.cli.running import fail, failures, load

if TYPE_CHECKING:
    from workers.sweep_findings import SweepReport

_option = partial(click.option, cls=DeferredErrorOption)


def _block_unused_imports() -> None:
    """Prevent optional imports before a long-running part is imported.

    structlog and httpx import `rich` and `pygments` for coloured output if they are installed, and litestar imports
    `pydantic` for models that are not used here, a fifth of the start. None makes the imports fail, which these
    libraries handle.
    """
    for name in ("rich", "pygments", "pydantic"):
        sys.modules.setdefault(name, None)  # pyright: ignore[reportArgumentType] - see above


@contextmanager
def _database_failures() -> Generator[None]:
    """Report an unusable database in one line with an exit status."""
    from hydracore.db.readiness import DatabaseUnusable

    try:
        yield
    except DatabaseUnusable as error:
        fail(str(error), NOT_DONE)


@click.command()
def api() -> None:
    """Serve the HTTP API."""
    settings = load(require=configuration.API_NEEDS)
    _block_unused_imports()
    from hydracore.api.main import run

    with _database_failures():
        sys.exit(run(settings))


@click.command()
def relay() -> None:
    """Run the relay, which follows the log and wakes workers."""
    settings = load(require=configuration.RELAY_NEEDS)
    _block_unused_imports()
    from workers.main import run_relay

    with _database_failures():
        run_relay(settings)


@click.command()
def worker() -> None:
    """Run a worker, which creates, watches and deletes servers."""
    settings = load(require=configuration.WORKER_NEEDS)
    _block_unused_imports()
    from workers.main import run_worker

    with _database_failures():
        run_worker(settings)


@click.command()
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@click.option(
    "--remove-unaccounted",
    is_flag=True,
    help="Delete all servers that the log has no record of, at once and without limit. Use --dry-run first.",
)
@json_option
def sweep(*, dry_run: bool, remove_unaccounted: bool, as_json: bool) -> None:
    """Compare the servers at each provider with the log, once.

    Deletes servers that belong to no instance, repairs labels, and reports servers that have vanished.

    Exit status: 0 done; 1 something could not be checked or repaired; 3 the database cannot be reached.
    """
    settings = load(require=configuration.WORKER_NEEDS)
    from hydracore.db import pool
    from workers.main import run_sweep

    with failures():
        pool.check_database(settings.database_url, role=settings.database_role, application="hydracore-sweep")
        swept = run_sweep(settings, dry_run=dry_run, remove_unaccounted=remove_unaccounted)
    if as_json:
        print_json(swept)
    else:
        _show_swept(swept)
    if not swept.is_complete:
        sys.exit(FOUND)


def _show_swept(swept: "SweepReport") -> None:
    for finding in swept.findings:
        facts = asdict(finding).items()
        say(" ".join(f"{name}={value}" for name, value in facts if value is not None))
    for one in swept.not_compared:
        note = "" if one.needed else " (the log has no instances there)"
        say(f"provider={one.provider} could not be checked: {one.why}{note}")
    say(f"{len(swept.findings)} found")


@click.command()
@_option("--home", type=Folder(), required=True, help="Directory for servers and state.")
@_option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@_option("--port", type=click.IntRange(0, 65_535), default=8400, show_default=True, help="Port to listen on.")
@_option(
    "--token",
    envvar="HYDRACORE_CLOUDSIM_TOKEN",
    show_envvar=True,
    required=True,
    help="The API token. Better set in the environment than given here.",
)
@_option(
    "--boot",
    type=click.Choice(["process", "inline"]),
    default="process",
    show_default=True,
    help="Run agents as processes of their own, or inline as tasks of cloudsim.",
)
@_option("--stop-servers-on-exit", is_flag=True, help="On exit, stop the servers' agents too.")
def cloudsim(*, home: Path, host: str, port: int, token: str, boot: str, stop_servers_on_exit: bool) -> None:
    """Simulate the Hetzner Cloud API, with local processes."""
    settings = load_with_options()
    _block_unused_imports()
    from hydracore import logs
    from hydracore.cloudsim.main import run, serve

    logs.configure(settings.log_level)

    run(serve(home=home, host=host, port=port, token=token, boot=boot, stop_servers_on_exit=stop_servers_on_exit))


@click.command()
@_option("--home", type=Folder(), default=".", help="Directory of script.json, if any.")
@_option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@_option("--port", type=click.IntRange(0, 65_535), default=8500, show_default=True, help="Port to listen on.")
@_option("--slow-counting", is_flag=True, help="When counting, pause 40 ms per number.")
def modelsim(*, home: Path, host: str, port: int, slow_counting: bool) -> None:
    """Serve scripted models over the OpenAI protocol."""
    settings = load_with_options()
    _block_unused_imports()
    from hydracore import logs
    from hydracore.modelsim.main import run

    logs.configure(settings.log_level)

    sys.exit(run(host=host, port=port, home=home, slow_counting=slow_counting))


@click.command()
@click.option("--root", type=Folder(), default="/", show_default=True, help="Root directory of the VPS.")
def agent(*, root: Path) -> None:
    """Run the agent of a VPS."""
    _block_unused_imports()
    from hydracore.agent.main import run

    sys.exit(run(root=root))
