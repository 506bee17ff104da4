"""What commands have in common: printing what programs read, and giving way to whoever writes."""

from typing import Any

import click
import msgspec


def print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


full_speed_option = click.option(
    "--full-speed", is_flag=True, help="Do not rest while others write: be done sooner, at their cost."
)
