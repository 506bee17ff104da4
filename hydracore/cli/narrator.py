"""The demo's output: titles, lines, streamed words; and waiting for what the demo has announced."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import httpx
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from hydracore.cli.printing import escaped_lines

POLL_S: Final = 0.1
#: The indentation of further lines, where a text is folded.
LINE_INDENT: Final = 4


class StoryError(Exception):
    """The demo did not go as expected; `str()` says how."""


class Narrator:
    """Writes to a console that is shared with others. `line_open` is held while a line is incomplete."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.line_open = asyncio.Lock()
        self._chapter = 0

    def chapter(self, title: str) -> None:
        self._chapter += 1
        self.console.print()
        self.line(Text(f"{self._chapter}  ", style="bold"), title, indent=LINE_INDENT)

    def say(self, text: str) -> None:
        self.line(Text("  "), text, indent=LINE_INDENT)

    def line(self, head: Text, rest: str, *, indent: int) -> None:
        """Print `head` and `rest` in one line.

        Where the terminal is too narrow, `rest` is folded, indented by `indent` columns. Padding in `head` is removed
        where `rest` begins on the next line.
        """
        # Before folding, because it may make the text longer. Models and others may send control characters.
        rest = escaped_lines(rest)
        if self.console.is_terminal:
            rest = fold(rest, first_column=head.cell_len, indent=indent, width=self.console.width)
        if not rest or rest.startswith("\n"):
            head.rstrip()
        self.console.print(head.append(rest), soft_wrap=True)

    async def stream_line(self, words: AsyncIterator[str]) -> None:
        """Print one line, each piece of it as soon as it arrives."""
        async with self.line_open:
            self.console.print("  ", end="")
            try:
                async for word in words:
                    self.console.print(escaped_lines(word), end="", markup=False, highlight=False, soft_wrap=True)
            finally:
                self.console.print()


def fold(text: str, *, first_column: int, indent: int, width: int) -> str:
    """`text`, from column `first_column` on, broken between words to fit `width` columns. Further lines are indented.

    A word that is longer than a line stays whole.
    """
    folded: list[str] = []
    room = width - first_column
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if cell_len(longer) > room and (line or room < width - indent):
                folded.append(line)
                line, room = word, width - indent
            else:
                line = longer
        folded.append(line)
        room = width - indent
    return f"\n{' ' * indent}".join(folded)


async def wait_until(condition: Callable[[], Awaitable[bool]], seconds_max: float, problem: str) -> None:
    """Wait for `condition`. Raises `StoryError` with `problem` after `seconds_max`."""
    try:
        async with asyncio.timeout(seconds_max):
            while not await condition():  # noqa: ASYNC110 - another process sets no Event
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise StoryError(f"{problem} within {seconds_max:g} s") from None


def expect(answer: httpx.Response, *wanted: int) -> dict[str, Any]:
    """The JSON of the answer. Raises `StoryError` for any status that is not `wanted`."""
    if answer.status_code not in wanted:
        path = answer.request.url.path
        raise StoryError(f"{answer.request.method} {path} answered {answer.status_code}: {answer.text[:500]}")
    return answer.json()
