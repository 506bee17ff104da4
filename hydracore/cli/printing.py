"""Shared by commands: safe output for terminals and programs, types of options, and the operator's name."""

import getpass
import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from hydracore.settings import Settings, SettingsError, load

#: The key in a command's context of the problems with its options.
_PROBLEMS: Final = "hydracore.problems"

#: Texts that need quotes, because without them they would look like something else.
_AMBIGUOUS_WORDS: Final = frozenset({"", "null", "true", "false"})

#: The most characters of a value from others in a line of output. JSON has all of it.
SHOWN_MAX: Final = 160
#: The most characters of a line on a terminal. Lines of values that a command has shortened already fit.
LINE_MAX: Final = 4_096

#: The parts of JSON that may have unprintable characters. Of the ASCII ones below the space, JSON has only whitespace.
_NON_ASCII: Final = re.compile(r"[^\x00-\x7e]+")


def escaped(text: str) -> str:
    """`text` in one line, with unprintable characters escaped: control characters, line ends, changes of direction.

    Otherwise, a text in a row or a file name could control the terminal that it is printed on.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def escaped_lines(text: str) -> str:
    """`escaped` for a text of several lines. Tabs become spaces."""
    return "\n".join(escaped(line.expandtabs()) for line in text.split("\n"))


def brief(text: str, length_max: int = SHOWN_MAX) -> str:
    """`text`, or its beginning and its length."""
    return text if len(text) <= length_max else f"{text[:length_max]}... ({len(text)} characters)"


def quoted(text: str) -> str:
    """A text from others as a word: in quotes where it is not a single word, so that it cannot imitate the line."""
    is_word = text not in _AMBIGUOUS_WORDS and " " not in text
    return escaped(text if is_word else msgspec.json.encode(text).decode())


def say(*lines: str, err: bool = False, bold: bool = False, whole: bool = False) -> None:
    """Print lines for people, without control characters.

    `whole`: do not cut long lines. `bold`: print the first line in bold. All commands print through this function, so
    that no text from others can control the terminal or hide other lines.
    """
    first, *others = map(escaped, lines) if whole else map(printable_line, lines)
    click.echo("\n".join([click.style(first, bold=True) if bold else first, *others]), err=err)


def printable_line(line: str) -> str:
    """A line as it is printed: without control characters, and cut if it is long."""
    return brief(escaped(line), LINE_MAX)


def print_json(value: Any) -> None:
    # As bytes, because JSON is in UTF-8, whatever the terminal's encoding is.
    click.echo(msgspec.json.format(_escaped_json(value), indent=2))


def print_json_line(value: Any) -> None:
    click.echo(_escaped_json(value))


def _escaped_json(value: Any) -> bytes:
    """`value` as JSON, with unprintable characters escaped: the same value, but safe on a terminal."""
    encoded = msgspec.json.encode(value)
    if encoded.isascii() and b"\x7f" not in encoded:
        return encoded
    return _NON_ASCII.sub(_escaped_match, encoded.decode()).encode()


def _escaped_match(found: re.Match[str]) -> str:
    text = found[0]
    return text if text.isprintable() else "".join(each if each.isprintable() else _json_escape(each) for each in text)


def _json_escape(char: str) -> str:
    """The JSON escape of a character: a surrogate pair for those beyond 16 bits."""
    pairs = char.encode("utf-16-be").hex()
    return "".join(f"\\u{pairs[at : at + 4]}" for at in range(0, len(pairs), 4))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
full_speed_option = click.option(
    "--full-speed", is_flag=True, help="Do not pause for writers: finishes sooner, but slows them down."
)


def operator() -> str:
    """The user who runs this command, as an actor. In a container a user may have a number but no name."""
    try:
        return f"operator:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"operator:uid:{os.getuid()}"


class DeferredErrorOption(click.Option):
    """An option whose problems are reported together with those of other options and of the settings.

    See `load_with_options`.
    """

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        try:
            return super().handle_parse_result(ctx, opts, args)
        except click.UsageError as error:
            ctx.meta.setdefault(_PROBLEMS, []).append(error.format_message())
            # The command is still called. It loads the settings first, which reports the problems.
            return ctx.params.setdefault(str(self.name), None), args


def load_with_options() -> Settings:
    """The settings. Raises `SettingsError` with all problems of them and of the command's options."""
    problems: list[str] = click.get_current_context().meta.get(_PROBLEMS, [])
    try:
        settings = load(os.environ)
    except SettingsError as error:
        raise SettingsError((*problems, *error.problems)) from None
    if problems:
        raise SettingsError(tuple(problems))
    return settings


class Folder(click.Path):
    """A directory, which may not exist yet.

    Refuses an empty name: an unset variable in a script would mean the current directory. The path must be UTF-8,
    because it is written to files in UTF-8.
    """

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("the directory's name must not be empty", param, ctx)
        if not _is_text(str(Path(value).absolute())):
            self.fail(f"the path of {value!r} is not valid UTF-8", param, ctx)
        return super().convert(value, param, ctx)


class Text(click.ParamType[str]):
    """A text that can be sent to PostgreSQL. A terminal may pass bytes that are not characters."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not _is_text(value):
            self.fail(f"{value!r} is not valid UTF-8", param, ctx)
        return value


class Time(click.ParamType[datetime]):
    """A time, in UTC unless it has an offset. `ends`: a date alone means the end of that day."""

    name = "time"

    def __init__(self, *, ends: bool = False) -> None:
        self._ends = ends

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        from hydracore.audit.timestamps import parse_end_time, parse_time

        read = parse_end_time if self._ends else parse_time
        try:
            return value if isinstance(value, datetime) else read(value)
        except ValueError as error:
            self.fail(f"{value!r} is {error}", param, ctx)


def _is_text(value: str) -> bool:
    """Whether it has no bytes that are not characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
