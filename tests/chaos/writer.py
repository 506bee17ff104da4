"""A writer as a process of its own, to be killed at any moment: `python -m tests.chaos.writer LOG URL STREAM...`.

`LOG` is a place in `LOGS`. It goes on in each stream where the table says that it is, and writes until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import psycopg

from hydracore.signals import run_to_completion
from tests.chaos.logs_compared import BROKEN, LOGS, Log, Mark


async def stored_marks(url: str, log: Log) -> set[Mark]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        return set(await (await connection.execute(log.truth.encode())).fetchall())


async def write(log: Log, stream: int, stop: Callable[[], bool], *, start: int = 1) -> int:
    """Append to one stream until told to stop; the number of the next event. What fails is tried again."""
    number = start
    while not stop():
        try:
            await log.write(stream, number)
        except BROKEN:
            continue
        number += 1
    return number


async def write_for_ever(which: int, url: str, streams: list[int]) -> None:
    async with LOGS[which].opened(url) as log:
        marks = await stored_marks(url, log)
        last = {name: max(number for stream, number in marks if stream == name) for name, _ in marks}
        await asyncio.gather(
            *(write(log, stream, lambda: False, start=last.get(log.stream_name(stream), 0) + 1) for stream in streams)
        )


if __name__ == "__main__":
    run_to_completion(write_for_ever(int(sys.argv[1]), sys.argv[2], [int(stream) for stream in sys.argv[3:]]))
