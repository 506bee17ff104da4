"""Folding lanes in processes of this machine."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from projections.definition import Projection
from projections.errors import FoldFailed
from projections.folding import fold_lanes
from projections.generations import Generation, Progress
from projections.rebuild import Folding

#: Between two looks at the progress.
LOOK_S = 0.1

#: Fresh interpreters: a fork of a process with threads and connections would inherit their locks.
_SPAWN = multiprocessing.get_context("spawn")


class Answer(Protocol):
    """An end of a pipe."""

    def send(self, obj: Any, /) -> None: ...
    def recv(self) -> Any: ...
    def poll(self) -> bool: ...
    def close(self) -> None: ...


def fold_in_processes(conninfo: str, *, workers: int) -> Folding:
    """Folds with `workers` processes; they end by themselves, whatever becomes of their parent."""

    async def fold(projection: Projection, build: Generation, progress: Callable[[], Awaitable[Progress]]) -> None:
        running = [_start(conninfo, projection, build) for _ in range(workers)]
        try:
            while any(process.is_alive() for process, _ in running):
                await progress()
                await asyncio.sleep(LOOK_S)
        finally:
            for process, _ in running:
                process.terminate()
                process.join()
        reasons = [_reason(process, answer) for process, answer in running if process.exitcode != 0]
        now = await progress()
        # A process that was killed leaves its lane to the others; only lanes that nobody folded are a failure.
        if now.lanes_folded < now.lanes:
            raise FoldFailed(build.name, "; ".join(reasons) or "lanes are left")

    return fold


def _start(conninfo: str, projection: Projection, build: Generation) -> tuple[BaseProcess, Answer]:
    answer, its_answer = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_work, args=(conninfo, projection, build, its_answer), name="hydracore-fold")
    process.start()
    its_answer.close()
    return process, answer


def _work(conninfo: str, projection: Projection, build: Generation, answer: Answer) -> None:
    try:
        fold_lanes(conninfo, projection, build)
    except Exception as error:  # noqa: BLE001 - the parent tells of it
        answer.send(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None


def _reason(process: BaseProcess, answer: Answer) -> str:
    try:
        return str(answer.recv()) if answer.poll() else f"a process ended with {process.exitcode}"
    except EOFError:
        return f"a process ended with {process.exitcode}"
