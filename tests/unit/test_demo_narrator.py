"""The demo's output fits the terminal: lines break between words and continue below, indented."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from io import StringIO
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from rich.console import Console
from rich.text import Text

from hydracore.cli.demo import print_failure
from hydracore.cli.follow import TYPE_COLUMN, Follower, facts_of, head_of
from hydracore.cli.narrator import Narrator, StoryError, expect
from hydracore.embedded.ports import free_port

EVENT: dict[str, Any] = {
    "recorded_at": datetime(2026, 11, 26, 5, 22, 18, 756_000, UTC),
    "lane": 11,
    "seq": 123,
    "type": "agent_key_acknowledged",
    "actor": "customer:885d64d7-8d4e-4c09-9b8b-5fd6f5b1a1a0",
    "payload": {
        "attempt": 1,
        "server_name": "hc-90902d16-2ea3-57d7-839c-2546331bc9cb",
        "reason": "requested by customer",
    },
}
HEAD = "  05:22:18.756 11/123 agent_key_acknowledged  customer:885d64d7"


def narrator_and_output(*, terminal: bool) -> tuple[Narrator, StringIO]:
    file = StringIO()
    return Narrator(Console(file=file, width=80, force_terminal=terminal, color_system=None)), file


def test_an_event_too_long_for_the_terminal_continues_indented_below_its_type() -> None:
    narrator, file = narrator_and_output(terminal=True)
    narrator.line(head_of(EVENT), facts_of(EVENT["payload"]), indent=TYPE_COLUMN)

    assert file.getvalue().splitlines() == [
        f"{HEAD} attempt=1",
        f"{'':22}server_name=hc-90902d16-2ea3-57d7-839c-2546331bc9cb",
        f"{'':22}reason=requested by customer",
    ]


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("payload", [{}, {"server_name": "hc-90902d16-2ea3-57d7-839c-2546331bc9cb"}])
def test_no_line_of_an_event_ends_in_blanks(payload: dict[str, Any], *, terminal: bool) -> None:
    narrator, file = narrator_and_output(terminal=terminal)
    narrator.line(head_of(EVENT | {"actor": "api"}), facts_of(payload), indent=TYPE_COLUMN)

    lines = file.getvalue().splitlines()
    assert lines == [line.rstrip() for line in lines]
    assert lines[0].startswith("  05:22:18.756 11/123 agent_key_acknowledged  api")


def test_an_event_is_one_line_when_the_output_is_not_a_terminal() -> None:
    narrator, file = narrator_and_output(terminal=False)
    narrator.line(head_of(EVENT), facts_of(EVENT["payload"]), indent=TYPE_COLUMN)

    (line,) = file.getvalue().splitlines()
    assert line.startswith(f"{HEAD} attempt=1 server_name=")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ["  short"]),
        (f"{'word ' * 16}end", [f"  {'word ' * 14}word", "    word end"]),
        ("two\nlines", ["  two", "    lines"]),
        ("x" * 100 + " end", [f"  {'x' * 100}", "    end"]),
        (f"{'界' * 38} 界", [f"  {'界' * 38}", "    界"]),
        # An escaped character takes more columns than the character itself.
        (" ".join(["\x1b" * 12] * 2), ["  " + r"\x1b" * 12, "    " + r"\x1b" * 12]),
        ("a\tb", ["  a       b"]),
    ],
)
def test_a_long_line_breaks_between_words(text: str, lines: list[str]) -> None:
    narrator, file = narrator_and_output(terminal=True)
    narrator.say(text)

    assert file.getvalue().splitlines() == lines


@pytest.mark.parametrize("markup", ["[/x]", "[red]", "[link=http://x]", "\\[", "\\"])
def test_a_failure_and_the_logs_are_printed_without_obeying_markup_or_control_characters(markup: str) -> None:
    console = Console(file=StringIO(), width=80, force_terminal=True, color_system=None)
    answer = httpx.Response(500, text=f"\x1b[2J{markup}\r\n  Done", request=httpx.Request("GET", "http://x/chat"))

    with pytest.raises(StoryError) as failed:
        expect(answer, 200)
    print_failure(failed.value, {"api": f"\tone \x1b[2J{markup}\ntwo", "valkey": "", "worker": ""}, console)

    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().splitlines() == [
        "",
        rf"The demo failed: GET /chat answered 500: \x1b[2J{markup}\r\n  Done",
        "",
        "end of api.log",
        rf"        one \x1b[2J{markup}",
        "two",
    ]


def test_an_error_without_a_message_is_shown_by_its_class_name() -> None:
    console = Console(file=StringIO(), width=80)
    print_failure(httpx.ReadTimeout(""), {}, console)

    assert isinstance(console.file, StringIO)
    assert console.file.getvalue() == "\nThe demo failed: ReadTimeout\n"


def test_a_line_without_facts_is_printed_as_its_head_alone() -> None:
    narrator, file = narrator_and_output(terminal=True)
    narrator.line(Text("head"), "", indent=4)

    assert file.getvalue() == "head\n"


async def test_terminal_control_characters_in_a_model_s_answer_are_escaped() -> None:
    async def words() -> AsyncGenerator[str]:
        yield "Hello\n"
        yield "\x1b[2JDone\r"

    narrator, file = narrator_and_output(terminal=False)
    await narrator.stream_line(words())
    narrator.say("It said\x1b[2J\nso")

    assert file.getvalue() == "  Hello\n\\x1b[2JDone\\r\n  It said\\x1b[2J\nso\n"


async def test_the_reason_why_the_log_cannot_be_read_is_told() -> None:
    narrator, _ = narrator_and_output(terminal=False)
    nowhere = f"postgresql://nobody@127.0.0.1:{free_port()}/none"

    async with Follower(nowhere, uuid4(), narrator) as follower:
        with pytest.raises(psycopg.OperationalError, match="refused"):
            await follower.wait_until_caught_up()
