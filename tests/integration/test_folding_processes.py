"""Folding in processes on a machine that lacks room for all of them, or for what they need."""

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
    """This process may open so many more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        # The lowest free descriptor is used next, so the free ones below the highest open one are taken first.
        highest = max(descriptors())
        while (last := os.open(os.devnull, os.O_RDONLY)) <= highest:
            stack.callback(os.close, last)
        stack.callback(os.close, last)
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + count, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_if_a_folding_process_cannot_start_the_others_are_ended_and_no_descriptor_stays_open() -> None:
    async def progress() -> Progress:
        return Progress(lanes=1, lanes_folded=0, events=1, events_folded=0)

    resource_tracker.ensure_running()
    # Garbage of earlier tests, such as connections of the official client, must not be collected meanwhile.
    gc.collect()
    # It never answers a connection, so that a started process does not end by itself.
    with socket.create_server(("127.0.0.1", 0)) as silent, room_for_descriptors(ROOM):
        before = descriptors()
        fold = fold_in_processes(f"postgresql://127.0.0.1:{silent.getsockname()[1]}/x", workers=WORKERS)
        with pytest.raises(FoldFailed, match="could not start a process: OSError: Too many open files"):
            await fold(InstanceProjection(), BUILD, progress)
        gc.collect()

        # The test run has other child processes.
        assert not [child for child in active_children() if child.name == "hydracore-fold"]
        assert len(descriptors()) == len(before)


async def test_the_error_of_a_folding_process_is_reported_with_its_message() -> None:
    async def progress() -> Progress:
        return Progress(lanes=1, lanes_folded=0, events=1, events_folded=0)

    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(FoldFailed, match=r"OperationalError: connection failed: .*Connection refused"):
        await fold_in_processes(f"postgresql://127.0.0.1:{port}/x", workers=1)(InstanceProjection(), BUILD, progress)

    process, answer = start_folding(partial(Path("/dev/full").write_text, "what is too much to hold"))
    await ended([process], within_s=PATIENCE_S)
    assert end_folding(process, answer) == "OSError: No space left on device"
