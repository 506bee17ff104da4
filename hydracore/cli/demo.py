"""`demo`: the whole product in half a minute, on parts that are real and gone afterwards, but for scripted models."""

import sys
from typing import TYPE_CHECKING, Final

import click

from hydracore.cli.printing import plain, plain_lines
from hydracore.signals import INTERRUPTED, run_until_signal

if TYPE_CHECKING:
    from rich.console import Console

    from hydracore.embedded.home import Home

#: Agents report every second here instead of every fifteen, so that it can be seen.
HEARTBEAT_INTERVAL_S: Final = "1"
#: The demo is the same everywhere, but for who answers its chats: an endpoint, its key, and a catalogue that names its models.
SETTINGS_KEPT: Final = ("model_base_url", "model_api_key", "catalogue")
#: What `up` would use, and the demo must not: it makes a customer and an instance, which are nothing for a database that happens to be
#: set.
STORES: Final = ("database_url", "redis_url")
#: Without a terminal there is no width to fit into.
WIDTH_WITHOUT_TERMINAL: Final = 160
#: How the names of the demo's directories begin.
HOMES: Final = "hydracore-demo-"


@click.command()
def demo() -> None:
    """Show the life of one instance, on real parts.

    It is asked for, runs, is used, and is deleted.

    Its model is a script, which it says, unless HYDRACORE_MODEL_BASE_URL names an OpenAI-compatible endpoint
    (HYDRACORE_MODEL_API_KEY, and HYDRACORE_CATALOGUE where its models have other names). PostgreSQL and Valkey are always its own.
    """
    from rich.console import Console

    from hydracore.embedded.throwaway import throwaway_home

    # A standard output that was closed is none at all.
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(width=None if on_terminal else WIDTH_WITHOUT_TERMINAL)
    with throwaway_home(HOMES) as home:
        finished = run_until_signal(_show(home, console))
    if not finished:
        sys.exit(INTERRUPTED)


async def _show(home: "Home", console: "Console") -> None:
    """Raises `SystemExit` with the reason and the last words of the parts where the story breaks off."""
    import os
    import time

    import httpx
    import psycopg

    from hydracore.cli.development import development
    from hydracore.cli.narrator import StoryError
    from hydracore.cli.story import Story
    from hydracore.cloudsim.disk import DISKS
    from hydracore.embedded.ports import free_port
    from hydracore.settings import PREFIX, variable

    began_s = time.monotonic()
    kept = set(map(variable, SETTINGS_KEPT))
    environ = {name: value for name, value in os.environ.items() if name in kept or not name.startswith(PREFIX)}
    environ["HYDRACORE_HEARTBEAT_INTERVAL_S"] = HEARTBEAT_INTERVAL_S
    if unused := [name for name in map(variable, STORES) if os.environ.get(name)]:
        console.print(f"not used: {' and '.join(unused)}; the demo always has stores of its own", soft_wrap=True)
    console.print("[bold]HydraCore[/bold]: PostgreSQL, Valkey, cloudsim, API, relay and worker are starting ...")
    async with development(home, port=free_port(), workers=1, environ=environ) as (stack, file):
        console.print(f"ready at {file.url} after {time.monotonic() - began_s:.1f} s", highlight=False)
        try:
            await Story(file, console, disks=home.cloudsim / DISKS).tell()
        except (StoryError, httpx.HTTPError, psycopg.Error) as error:
            tell_failure(error, stack.supervisor.last_words(), console)
            raise SystemExit(1) from None
        console.print("\nstopping ...")
    console.print(
        f"[bold green]Done[/bold green] in {time.monotonic() - began_s:.1f} s; nothing is left running.",
        highlight=False,
    )


def tell_failure(error: Exception, last_words: dict[str, str], console: "Console") -> None:
    """Why the story breaks off, and the end of each part's log; the stores' say nothing about a story.

    An error has words of whatever answered, and a log those of whoever was asked: they are no markup, and no orders to the terminal.
    """
    from rich.text import Text

    console.print()
    why = plain(str(error)) or type(error).__name__
    console.print(Text.assemble(("The demo failed:", "bold red"), f" {why}"), soft_wrap=True)
    for name, text in last_words.items():
        if text and name not in {"postgres", "valkey"}:
            console.print(f"\nend of {name}.log", style="bold", highlight=False)
            console.print(plain_lines(text), markup=False, highlight=False, soft_wrap=True)
