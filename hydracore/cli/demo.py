"""`demo`: the whole product in half a minute, on real parts that are removed afterwards, with scripted models."""

import sys
from typing import TYPE_CHECKING, Final

import click

from hydracore.cli.printing import escaped, escaped_lines
from hydracore.signals import INTERRUPTED, run_until_signal

if TYPE_CHECKING:
    from rich.console import Console

    from hydracore.embedded.home import Home

#: Agents report every second instead of every fifteen, so that reports are seen during the demo.
HEARTBEAT_INTERVAL_S: Final = "1"
#: The settings that the demo takes over: who answers its chats (an endpoint, its key, and a catalogue with its models).
ALLOWED_SETTINGS: Final = ("model_base_url", "model_api_key", "catalogue")
#: Settings that `up` uses and the demo ignores: it creates a customer and an instance, which do not belong in a
#: database that happens to be configured.
STORES: Final = ("database_url", "redis_url")
#: The width of the output where there is no terminal that limits it.
WIDTH_WITHOUT_TERMINAL: Final = 160
#: The prefix of the names of the demo's directories.
HOME_PREFIX: Final = "hydracore-demo-"


@click.command()
def demo() -> None:
    """Show the life of one instance, from request to deletion.

    Starts all services on this machine, creates an instance, uses it, deletes it, and removes everything afterwards.

    By default a scripted model answers. To use a real one, set HYDRACORE_MODEL_BASE_URL to an OpenAI-compatible
    endpoint, HYDRACORE_MODEL_API_KEY to its key and, if its models have other names, HYDRACORE_CATALOGUE. The demo
    always starts its own PostgreSQL and Valkey.
    """
    from rich.console import Console

    from hydracore.embedded.temporary_home import temporary_home

    # `sys.stdout` is None where standard output was closed.
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(width=None if on_terminal else WIDTH_WITHOUT_TERMINAL)
    with temporary_home(HOME_PREFIX) as home:
        finished = run_until_signal(_show(home, console))
    if not finished:
        sys.exit(INTERRUPTED)


async def _show(home: "Home", console: "Console") -> None:
    """Run the demo. If the story fails, prints why, with the ends of the parts' logs, and raises `SystemExit`."""
    import os
    import time

    import httpx
    import psycopg

    from hydracore.cli.development import development
    from hydracore.cli.narrator import StoryError
    from hydracore.cli.story import Story
    from hydracore.cloudsim.disk import DISKS
    from hydracore.settings import PREFIX, variable_name

    began_s = time.monotonic()
    kept = set(map(variable_name, ALLOWED_SETTINGS))
    environ = {name: value for name, value in os.environ.items() if name in kept or not name.startswith(PREFIX)}
    environ["HYDRACORE_HEARTBEAT_INTERVAL_S"] = HEARTBEAT_INTERVAL_S
    if unused := [name for name in map(variable_name, STORES) if os.environ.get(name)]:
        console.print(f"ignored: {' and '.join(unused)}; the demo always starts its own stores", soft_wrap=True)
    console.print("[bold]HydraCore[/bold]: PostgreSQL, Valkey, cloudsim, API, relay and worker are starting ...")
    async with development(home, port=None, workers=1, environ=environ) as (stack, file):
        console.print(f"ready at {file.url} after {time.monotonic() - began_s:.1f} s", highlight=False)
        try:
            await Story(file, console, disks=home.cloudsim / DISKS).run()
        except (StoryError, httpx.HTTPError, psycopg.Error) as error:
            print_failure(error, stack.supervisor.log_tails(), console)
            raise SystemExit(1) from None
        console.print("\nstopping ...")
    console.print(
        f"[bold green]Done[/bold green] in {time.monotonic() - began_s:.1f} s; nothing is left running.",
        highlight=False,
    )


def print_failure(error: Exception, log_tails: dict[str, str], console: "Console") -> None:
    """Print why the story failed, and the end of each part's log except the stores'.

    Errors and logs hold texts of others: they are printed without markup and without control characters.
    """
    from rich.text import Text

    console.print()
    why = escaped(str(error)) or type(error).__name__
    console.print(Text.assemble(("The demo failed:", "bold red"), f" {why}"), soft_wrap=True)
    for name, text in log_tails.items():
        if text and name not in {"postgres", "valkey"}:
            console.print(f"\nend of {name}.log", style="bold", highlight=False)
            console.print(escaped_lines(text), markup=False, highlight=False, soft_wrap=True)
