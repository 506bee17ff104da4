"""Relay and worker stop in order at whatever says so, a terminal that is closed too."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from hydracore.settings import variable
from tests.program import Program
from tests.waiting import PATIENCE_S, until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("part", ["relay", "worker"])
async def test_a_part_that_has_just_begun_its_work_stops_at_a_signal(
    part: str, number: signal.Signals, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    settings = {"database_url": database_url, "redis_url": redis_url, "master_key": "a" * 43, "jwt_secret": "a" * 32}
    settings["public_url"] = "http://127.0.0.1:9"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HYDRACORE_")}
    environ = inherited | {variable(name): value for name, value in settings.items()}
    program = Program(part, environ=environ, log=tmp_path / "log")
    program.start(log_level="info")
    # The relay is making its connection to Redis in this moment.
    await until(lambda: program.has_said(f"{part}_started"), poll_s=0.002)

    program.send(number)

    assert await asyncio.to_thread(program.wait, PATIENCE_S) == 0
    assert "Traceback" not in program.output()
