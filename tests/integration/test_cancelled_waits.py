"""A task that waits for one of two things and is cancelled leaves nothing running without an owner."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from hydracore.cloudsim.main import _make_reconciler, _running_app
from hydracore.cloudsim.quota import Quota
from hydracore.cloudsim.sim import Sim
from hydracore.cloudsim.store import Store
from hydracore.embedded.part import Part
from hydracore.embedded.part_runner import PartRunner
from hydracore.modelsim.app import ModelSim
from hydracore.modelsim.faults import Fault
from tests.waiting import until


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def other_tasks() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {task for task in [asyncio.current_task()] if task}


async def test_a_part_runner_that_is_cancelled_leaves_no_process_and_no_task(tmp_path: Path) -> None:
    program = (sys.executable, "-c", "import time; time.sleep(600)")
    part = Part(name="one", kind="one", command=program, environ=dict(os.environ))
    runner = PartRunner(part, log=tmp_path / "one.log", on_change=lambda: None, on_failure=lambda _: None)
    runner.begin()
    await until(lambda: runner.pid)
    pid = runner.pid
    assert pid is not None
    assert runner._task is not None
    await cancel(runner._task)

    assert not other_tasks()
    assert not psutil.pid_exists(pid), "not even as a zombie"


async def test_a_cancelled_part_runner_waits_until_its_preparation_has_cleaned_up(tmp_path: Path) -> None:
    begun, cleaned_up = asyncio.Event(), asyncio.Event()

    async def prepare() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()

    part = Part(name="one", kind="one", command=("false",), environ={}, prepare=prepare)
    runner = PartRunner(part, log=tmp_path / "one.log", on_change=lambda: None, on_failure=lambda _: None)
    runner.begin()
    await begun.wait()
    assert runner._task is not None
    await cancel(runner._task)

    assert cleaned_up.is_set()
    assert not other_tasks()


async def test_a_cancelled_request_leaves_no_task_in_modelsim() -> None:
    sim = ModelSim()
    sim.faults.add(Fault(kind="hang"))
    asked = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello"}]}).encode()
    messages = [{"type": "http.request", "body": asked, "more_body": False}]
    listening = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        listening.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(_: Any) -> None:
        raise AssertionError("nothing is answered")

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    serving = asyncio.create_task(sim(scope, receive, send))
    await listening.wait()
    await cancel(serving)

    assert not other_tasks()


@contextlib.contextmanager
def an_unserved_cloudsim(home: Path) -> Generator[Sim]:
    store = Store(home / "cloudsim.sqlite", now=lambda: datetime.now(UTC), pick=secrets.randbelow)
    reconciler = _make_reconciler(home, store, boot="inline", action_delay_s=0, stop_grace_s=1)
    with contextlib.closing(store):
        yield Sim(store=store, reconciler=reconciler, quota=Quota(monotonic=time.monotonic, wall=time.time), token="t")


# Its handlers declare parameters in a way that this release of Litestar deprecates.
@pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")
async def test_a_cloudsim_that_is_cancelled_while_it_starts_leaves_no_task(tmp_path: Path) -> None:
    with an_unserved_cloudsim(tmp_path) as sim, socket.create_server(("127.0.0.1", 0)) as listener:
        serving = _running_app(sim, listener)
        starting = asyncio.create_task(serving.__aenter__())
        # The server begins to start within the first step, and needs more steps until it answers.
        await asyncio.sleep(0)
        assert len(other_tasks()) > 1
        await cancel(starting)

        assert not other_tasks()
