"""`python -m bench [NAMES] [--json FILE]`: measure all of it, or only some, and print one table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import click
import msgspec

from bench import append, audit, beside, chat, lag, reads, rebuild, running, state
from bench.result import Comparison, Limit, show
from bench.services import Services, running_services
from hydracore.signals import run_to_completion

Measured = Sequence[Comparison | Limit]

MEASUREMENTS: dict[str, Callable[[Services], Awaitable[Measured]]] = {
    "append": append.compare,
    "reads": reads.compare,
    "running": running.measure,
    "rebuild": rebuild.compare,
    "state": state.measure,
    "chat": chat.measure,
    "lag": lag.measure,
    "audit": audit.measure,
    "beside": beside.compare,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MEASUREMENTS)))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def main(names: tuple[str, ...], json_file: Path | None) -> None:
    """Measure HydraCore against the usual stack (all of it, or only NAMES)."""
    # However this ends, no process that it has started stays: `timeout` sends a TERM.
    results = run_to_completion(_measure(names or tuple(MEASUREMENTS)))
    show(results)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(results)))


async def _measure(names: tuple[str, ...]) -> list[Comparison | Limit]:
    results: list[Comparison | Limit] = []
    async with running_services() as services:
        for name in names:
            click.echo(f"measuring {name} ...", err=True)
            results += await MEASUREMENTS[name](services)
    return results


if __name__ == "__main__":
    main()
