"""How the demo tells what it does: titles, lines, words as they come, and the patience to wait for what it promised."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import httpx
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from hydracore.cli.printing import plain_lines

POLL_S: Final = 0.1
#: Where what is said goes on when a line is full.
SAID_INDENT: Final = 4


class StoryError(Exception):
    """The story took another turn; `str()` says which."""


class Narrator:
    """Writes on a console that others write on, too: `line_open` is held while a line is under way."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.line_open = asyncio.Lock()
        self._chapter = 0

    def chapter(self, title: str) -> None:
        self._chapter += 1
        self.console.print()
        self.line(Text(f"{self._chapter}  ", style="bold"), title, indent=SAID_INDENT)

    def say(self, text: str) -> None:
        self.line(Text("  "), text, indent=SAID_INDENT)

    def line(self, head: Text, rest: str, *, indent: int) -> None:
        """`head` and `rest` in a line. Where a terminal is too narrow for it, `rest` goes on below, `indent` columns from its edge.

        What fills the columns of `head` is not for the end of a line.
        """
        # First of all, as it takes more columns so. A model, and whoever else is told of, may say what they like.
        rest = plain_lines(rest)
        if self.console.is_terminal:
            rest = fold(rest, begin=head.cell_len, indent=indent, width=self.console.width)
        if not rest or rest.startswith("\n"):
            head.rstrip()
        self.console.print(head.append(rest), soft_wrap=True)

    async def say_as_it_comes(self, words: AsyncIterator[str]) -> None:
        """One line, each piece of it shown the moment that it is there."""
        async with self.line_open:
            self.console.print("  ", end="")
            try:
                async for word in words:
                    self.console.print(plain_lines(word), end="", markup=False, highlight=False, soft_wrap=True)
            finally:
                self.console.print()


def fold(text: str, *, begin: int, indent: int, width: int) -> str:
    """`text`, which begins at column `begin`, broken between words so that it fits into `width` columns, each new line indented.

    A word that is too long for a line of its own is left whole.
    """
    folded: list[str] = []
    room = width - begin
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


async def until(condition: Callable[[], Awaitable[bool]], seconds_max: float, complaint: str) -> None:
    """Wait for `condition`. Raises `StoryError` with the complaint where it does not come in time."""
    try:
        async with asyncio.timeout(seconds_max):
            while not await condition():  # noqa: ASYNC110 - another process sets no Event
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise StoryError(f"{complaint} within {seconds_max:g} s") from None


def expect(answer: httpx.Response, *wanted: int) -> dict[str, Any]:
    """The answer's JSON. Raises `StoryError` for any other status."""
    if answer.status_code not in wanted:
        path = answer.request.url.path
        raise StoryError(f"{answer.request.method} {path} answered {answer.status_code}: {answer.text[:500]}")
    return answer.json()
