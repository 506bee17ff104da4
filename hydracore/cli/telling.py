"""How the demo tells what it does: titles, lines, words as they come, and the patience to wait for what it promised."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import httpx
from rich.console import Console

POLL_S: Final = 0.1


class StoryError(Exception):
    """The story took another turn; `str()` says which."""


class Teller:
    """Writes on a console that others write on, too: `line_open` is held while a line is under way."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.line_open = asyncio.Lock()
        self._chapter = 0

    def chapter(self, title: str) -> None:
        self._chapter += 1
        self.console.print()
        self.console.print(f"{self._chapter}  {title}", style="bold", markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)

    async def say_as_it_comes(self, words: AsyncIterator[str]) -> None:
        """One line, each piece of it shown the moment that it is there."""
        async with self.line_open:
            self.console.print("  ", end="")
            try:
                async for word in words:
                    self.console.print(word, end="", markup=False, highlight=False, soft_wrap=True)
            finally:
                self.console.print()


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
