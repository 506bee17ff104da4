"""What commands have in common: printing what programs read, giving way to whoever writes, and who gives an order."""

import getpass
import os
from typing import Any

import click
import msgspec


def print_json(value: Any) -> None:
    # Bytes: JSON is in UTF-8, whatever the terminal speaks.
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


full_speed_option = click.option(
    "--full-speed", is_flag=True, help="Do not rest while others write: be done sooner, at their cost."
)


def operator() -> str:
    """Whoever runs this command, as an actor. In a container a user may have a number and no name."""
    try:
        return f"operator:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"operator:uid:{os.getuid()}"


class Text(click.ParamType[str]):
    """What PostgreSQL can be asked for: a terminal passes on bytes that are no characters, too."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{value!r} is no text in UTF-8", param, ctx)
        return value
