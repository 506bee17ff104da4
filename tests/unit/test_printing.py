"""What commands print: lines for people, in which text from elsewhere cannot control the terminal."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from hydracore import cli
from hydracore.cli import main
from hydracore.cli.printing import LINE_MAX, SHOWN_MAX, brief, escaped, print_json, print_json_line, quoted, say
from hydracore.embedded.errors import PartFailed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Žofie, 3 €, \N{SNOWMAN}", "Žofie, 3 €, \N{SNOWMAN}"),
        ("a\x1b[2J\r\n\t\x00b", r"a\x1b[2J\r\n\t\x00b"),
        # Characters of another block that alone begin an escape sequence or end a line.
        ("a\x7f\x9b2J\x85", r"a\x7f\x9b2J\x85"),
        ("a\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}b", r"a\u2028\u2029b"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b\N{POP DIRECTIONAL ISOLATE}", r"a\u202eb\u2069"),
        ("a\N{ZERO WIDTH SPACE}\N{NO-BREAK SPACE}\N{ZERO WIDTH NO-BREAK SPACE}", r"a\u200b\xa0\ufeff"),
        ("no \udcff text", r"no \udcff text"),
    ],
)
def test_unprintable_characters_are_shown_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert escaped(shown) == shown


@pytest.mark.parametrize("text", ["acme, 63 steps of others", "", "null", 'say "so" now'])
def test_an_ambiguous_text_is_printed_in_quotes(text: str) -> None:
    assert quoted(text).startswith('"')
    assert quoted("acme-1") == "acme-1"


def test_a_long_text_is_shortened_and_its_length_is_given() -> None:
    assert brief("x" * SHOWN_MAX) == "x" * SHOWN_MAX
    assert brief("x" * (SHOWN_MAX + 1)) == "x" * SHOWN_MAX + f"... ({SHOWN_MAX + 1} characters)"


def test_say_escapes_line_breaks_and_control_characters_within_a_line() -> None:
    @click.command()
    def tell() -> None:
        say("first\n", "second\x1b[2J", bold=True)

    assert CliRunner().invoke(tell, color=True).output == "\x1b[1mfirst\\n\x1b[0m\nsecond\\x1b[2J\n"


def test_a_long_line_is_shortened_unless_it_is_to_be_printed_whole() -> None:
    @click.command()
    def tell() -> None:
        say("first", "\x1b" * LINE_MAX)
        say("x" * (LINE_MAX + 1), whole=True)

    _, beginning, whole = CliRunner().invoke(tell, color=True).output.splitlines()
    assert beginning == brief(r"\x1b" * LINE_MAX, LINE_MAX)
    assert whole == "x" * (LINE_MAX + 1)


@pytest.mark.parametrize("show", [print_json, print_json_line])
def test_printed_json_escapes_unprintable_characters_and_decodes_to_the_same_value(
    show: Callable[[object], None],
) -> None:
    # JSON has no lone surrogates. Few code points above the third plane are characters, and those stand in ranges.
    several = [*range(0xE000, 0x40000), *range(0x40000, sys.maxunicode, 101), *range(0xE0000, 0xE0200), sys.maxunicode]
    texts = ["".join(map(chr, range(0xD800))), "".join(map(chr, several)), r"\x7f \u202e"]
    value = {"a\x9b2J": texts, "Žofie": msgspec.Raw(b'[\n\t"\x7f\\u001b", {}]')}

    @click.command()
    def tell() -> None:
        show(value)

    printed = CliRunner().invoke(tell, color=True).stdout_bytes
    assert printed.replace(b"\n", b"").replace(b"\t", b"").decode().isprintable()
    assert "Žofie".encode() in printed
    assert msgspec.json.decode(printed) == {"a\x9b2J": texts, "Žofie": ["\x7f\x1b", {}]}


@pytest.mark.parametrize("error", [click.UsageError, click.ClickException])
def test_a_long_error_message_is_shortened(error: type[click.ClickException]) -> None:
    @click.command()
    def fail() -> None:
        raise error("There is no " + "x" * 50_000)

    group = type(main)("group", commands={"fail": fail})

    assert len(CliRunner().invoke(group, ["fail"]).stderr) < LINE_MAX + 200


def test_tabs_in_the_end_of_a_log_are_printed_as_blanks() -> None:
    @click.command()
    def fail() -> None:
        raise PartFailed("postgres", "ended", Path("postgres.log"), "HINT:\tlook\n\tat \x1b[2Jit")

    group = type(main)("group", commands={"fail": fail})

    *_, first, second = CliRunner().invoke(group, ["fail"], color=True).stderr.splitlines()
    assert first == "hydracore:   | HINT:   look"
    assert second == r"hydracore:   |         at \x1b[2Jit"


@pytest.mark.parametrize("error", [click.UsageError, click.ClickException])
def test_control_characters_in_an_error_message_are_escaped(error: type[click.ClickException]) -> None:
    @click.command()
    def fail() -> None:
        raise error("There is no\x1b[2J\r\nwell")

    group = type(main)("group", commands={"fail": fail})

    assert r"There is no\x1b[2J\r\nwell" in CliRunner().invoke(group, ["fail"], color=True).stderr


def test_commands_print_only_through_the_printing_module() -> None:
    """Except for the commands to be pasted that `up` prints."""
    found = set[tuple[str, str]]()
    for path in Path(*cli.__path__).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="click"), attr="echo" | "secho" as way)):
                    found.add((path.name, way))
                case ast.Call(func=ast.Name(id="print" as way)):
                    found.add((path.name, way))

    assert found == {("printing.py", "echo"), ("up.py", "echo")}
