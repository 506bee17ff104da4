"""What commands have in common: printing what programs read, kinds of options, and who gives an order."""

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

#: Where a command's context keeps what is wrong with its options.
_PROBLEMS: Final = "hydracore.problems"

#: Texts that would be taken for something else without quotes.
_NO_WORDS: Final = frozenset({"", "null", "true", "false"})

#: How much of a value that others chose a line shows; JSON has all of it.
SHOWN_MAX: Final = 160
#: And how much a terminal is shown of a line, whatever it was made of; what a command has cut by itself fits.
LINE_MAX: Final = 4_096

#: Where a text in JSON may have what does not show; below a blank there is only what stands between its values.
_MAY_HIDE: Final = re.compile(r"[^\x00-\x7e]+")


def plain(text: str) -> str:
    """`text` in one line, and without what a terminal does something about: what Python calls not printable is written out,
    such as control characters and what ends a line or turns the direction of writing.

    Whoever may write a row or make a file would otherwise write on the terminal of whoever looks at it.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def plain_lines(text: str) -> str:
    """Several lines of it, their tabs as blanks."""
    return "\n".join(plain(line.expandtabs()) for line in text.split("\n"))


def brief(text: str, length_max: int = SHOWN_MAX) -> str:
    """`text`, or its beginning and how long it is."""
    return text if len(text) <= length_max else f"{text[:length_max]}... ({len(text)} characters)"


def quoted(text: str) -> str:
    """A text that others chose, as a word among ours: in quotes where it is none of itself, so that it cannot go on as we would."""
    is_word = text not in _NO_WORDS and " " not in text
    return plain(text if is_word else msgspec.json.encode(text).decode())


def say(*lines: str, err: bool = False, bold: bool = False, whole: bool = False) -> None:
    """Print lines for people, whatever they tell of, and of each no more than its beginning unless it is wanted `whole`; `bold`: the
    first of them.

    Every line of a command is printed here, so that none can be one that does what somebody else has written, or hides the others.
    """
    first, *others = map(plain, lines) if whole else map(plain_beginning, lines)
    click.echo("\n".join([click.style(first, bold=True) if bold else first, *others]), err=err)


def plain_beginning(line: str) -> str:
    """As much of a line as a terminal is shown."""
    return brief(plain(line), LINE_MAX)


def print_json(value: Any) -> None:
    # Bytes: JSON is in UTF-8, whatever the terminal speaks.
    click.echo(msgspec.json.format(_plain_json(value), indent=2))


def print_json_line(value: Any) -> None:
    click.echo(_plain_json(value))


def _plain_json(value: Any) -> bytes:
    """What does not show is written as JSON can: whoever reads it has the same value, and a terminal nothing to do."""
    encoded = msgspec.json.encode(value)
    if encoded.isascii() and b"\x7f" not in encoded:
        return encoded
    return _MAY_HIDE.sub(_plain_match, encoded.decode()).encode()


def _plain_match(found: re.Match[str]) -> str:
    text = found[0]
    return text if text.isprintable() else "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(char: str) -> str:
    """As JSON has it: a pair of surrogates for what sixteen bits do not hold."""
    pairs = char.encode("utf-16-be").hex()
    return "".join(f"\\u{pairs[at : at + 4]}" for at in range(0, len(pairs), 4))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
full_speed_option = click.option(
    "--full-speed", is_flag=True, help="Do not rest while others write: be done sooner, at their cost."
)


def operator() -> str:
    """Whoever runs this command, as an actor. In a container a user may have a number and no name."""
    try:
        return f"operator:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"operator:uid:{os.getuid()}"


class PatientOption(click.Option):
    """An option that says what is wrong with it together with all others of its command, and its settings (`load_with_options`)."""

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        try:
            return super().handle_parse_result(ctx, opts, args)
        except click.UsageError as error:
            ctx.meta.setdefault(_PROBLEMS, []).append(error.format_message())
            # The command is still called, and asks for the settings first.
            return ctx.params.setdefault(str(self.name), None), args


def load_with_options() -> Settings:
    """The settings. Raises `SettingsError` with all that is wrong with them and with the command's options."""
    problems: list[str] = click.get_current_context().meta.get(_PROBLEMS, [])
    try:
        settings = load(os.environ)
    except SettingsError as error:
        raise SettingsError((*problems, *error.problems)) from None
    if problems:
        raise SettingsError(tuple(problems))
    return settings


class Folder(click.Path):
    """A directory that may be made. An empty name, which a script's unset variable gives, would be the current one.

    Files of ours name it in UTF-8, so its path must be a text.
    """

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("the name of a directory is empty", param, ctx)
        if not _is_text(str(Path(value).absolute())):
            self.fail(f"{value!r} has no path in UTF-8", param, ctx)
        return super().convert(value, param, ctx)


class Text(click.ParamType[str]):
    """What PostgreSQL can be asked for: a terminal passes on bytes that are no characters, too."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not _is_text(value):
            self.fail(f"{value!r} is no text in UTF-8", param, ctx)
        return value


class Time(click.ParamType[datetime]):
    """In UTC unless it says otherwise. `ends`: a date alone is all of that day."""

    name = "time"

    def __init__(self, *, ends: bool = False) -> None:
        self._ends = ends

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        from hydracore.audit.moments import read_end, read_time

        read = read_end if self._ends else read_time
        try:
            return value if isinstance(value, datetime) else read(value)
        except ValueError as error:
            self.fail(f"{value!r} is {error}", param, ctx)


def _is_text(value: str) -> bool:
    """False where it has bytes that are no characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
