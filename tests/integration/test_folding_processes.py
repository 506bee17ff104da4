"""Folding in processes where the machine has no room for all of them, or for what they need."""

from __future__ import annotations

import gc
import os
import resource
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import active_children, resource_tracker
from pathlib import Path

import pytest

from projections.errors import FoldFailed
from projections.generations import Generation, Progress
from projections.instance import InstanceProjection
from projections.processes import end_folding, ended, fold_in_processes, start_folding
from tests.waiting import PATIENCE_S

#: Enough for two or three processes, each of which needs some descriptors as it starts and keeps a few.
ROOM = 14
WORKERS = 12

BUILD = Generation(name="instance", number=2, version=1, tables=["instance"], state="folding")


def descriptors() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/fd").iterdir()]


@contextmanager
def room_for_descriptors(count: int) -> Generator[None]:
    """This process may open so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        # The lowest that is free is the next one: whatever is free among those that are open is taken first.
        highest = max(descriptors())
        while (last := os.open(os.devnull, os.O_RDONLY)) <= highest:
            stack.callback(os.close, last)
        stack.callback(os.close, last)
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + count, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_where_one_cannot_be_started_those_before_it_are_ended_and_nothing_stays_open() -> None:
    async def progress() -> Progress:
        return Progress(lanes=1, lanes_folded=0, events=1, events_folded=0)

    resource_tracker.ensure_running()
    # What the tests before this one have left to the garbage, as the official client its connections, must not go meanwhile.
    gc.collect()
    # Whoever connects to it is never answered: a process that was started has no end of its own.
    with socket.create_server(("127.0.0.1", 0)) as silent, room_for_descriptors(ROOM):
        before = descriptors()
        fold = fold_in_processes(f"postgresql://127.0.0.1:{silent.getsockname()[1]}/x", workers=WORKERS)
        with pytest.raises(FoldFailed, match="could not start a process: OSError: Too many open files"):
            await fold(InstanceProjection(), BUILD, progress)
        gc.collect()

        # The tests themselves have others.
        assert not [child for child in active_children() if child.name == "hydracore-fold"]
        assert len(descriptors()) == len(before)


async def test_what_keeps_processes_from_folding_is_told_in_words() -> None:
    async def progress() -> Progress:
        return Progress(lanes=1, lanes_folded=0, events=1, events_folded=0)

    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(FoldFailed, match=r"OperationalError: connection failed: .*Connection refused"):
        await fold_in_processes(f"postgresql://127.0.0.1:{port}/x", workers=1)(InstanceProjection(), BUILD, progress)

    process, answer = start_folding(partial(Path("/dev/full").write_text, "what is too much to hold"))
    await ended([process], within_s=PATIENCE_S)
    assert end_folding(process, answer) == "OSError: No space left on device"
