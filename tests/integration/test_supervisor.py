"""The supervisor, with tiny real processes: restarts with backoff, bounded stops, and errors in a part or its runner."""

import asyncio
import os
import signal
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from hydracore.embedded.errors import PartFailed
from hydracore.embedded.files import write_json
from hydracore.embedded.home import Home
from hydracore.embedded.ports import free_port
from hydracore.embedded.stack import Stack
from hydracore.embedded.supervisor import Supervisor
from hydracore.log_files import LOG_BYTES_MAX
from tests.services import open_folder
from tests.supervising import QUIET, SLEEP, STUBBORN, WITH_CHILD, gone, part, running
from tests.waiting import until


async def test_a_part_that_dies_is_restarted(tmp_path: Path) -> None:
    changes: list[dict[str, list[int]]] = []
    async with Supervisor.running(
        home=tmp_path, logs=tmp_path, on_change=lambda: changes.append(supervisor.pids())
    ) as supervisor:
        await supervisor.start(part("one", SLEEP))
        (first,) = supervisor.pids()["one"]
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.pids()["one"] not in ([], [first]))
        (second,) = supervisor.pids()["one"]

    assert changes[:3] == [{"one": [first]}, {"one": []}, {"one": [second]}]
    assert gone(second)
    assert f"one (pid {first}) ended: signal SIGKILL" in (tmp_path / "one.log").read_text()


async def test_a_log_that_exceeds_its_limit_is_rotated_while_its_part_runs(tmp_path: Path) -> None:
    log = tmp_path / "talks.log"
    program = f"print('x' * {LOG_BYTES_MAX}); {SLEEP}"
    async with running(tmp_path) as supervisor:
        await supervisor.start(part("talks", program, log=log))
        (pid,) = supervisor.pids()["talks"]
        await until(lambda: log.stat().st_size == 0)

        assert supervisor.pids()["talks"] == [pid]

    assert log.with_name("talks.log.old").stat().st_size > LOG_BYTES_MAX
    assert log.read_text().startswith(f"talks (pid {pid}) ended")


async def test_the_pause_before_a_restart_grows(tmp_path: Path) -> None:
    stamps = tmp_path / "stamps"
    program = f"import time; open({str(stamps)!r}, 'a').write(f'{{time.monotonic()}}\\n'); time.sleep(0.2)"
    async with running(tmp_path) as supervisor:
        await supervisor.start(part("short", program))
        await until(lambda: stamps.exists() and len(stamps.read_text().split()) >= 4)

    first, second, third, fourth = (float(stamp) for stamp in stamps.read_text().split()[:4])
    assert second - first >= 0.4
    assert third - second >= 0.6
    assert fourth - third >= 1.0


async def test_a_part_that_cannot_start_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with running(tmp_path) as supervisor:
        with pytest.raises(PartFailed) as caught:
            await supervisor.start(part("bad", "raise SystemExit('no settings')", log=tmp_path / "never"))

    assert caught.value.reason == "ended during startup"
    assert "no settings" in caught.value.log_tail
    assert str(tmp_path / "bad.log") in str(caught.value)


async def test_a_part_that_never_gets_ready_is_reported_and_stopped(tmp_path: Path) -> None:
    async with running(tmp_path) as supervisor:
        with pytest.raises(PartFailed, match="was not ready within"):
            await supervisor.start(part("slow", SLEEP, log=tmp_path / "never"), ready_s_max=0.5)
        (pid,) = supervisor.pids()["slow"]

    assert gone(pid)


async def test_parts_that_ignore_a_stop_and_children_of_parts_are_killed_after_the_grace(tmp_path: Path) -> None:
    clock = asyncio.get_running_loop().time
    async with running(tmp_path) as supervisor:
        await supervisor.start(part("stubborn", STUBBORN, log=tmp_path / "stubborn.log"))
        await supervisor.start(part("parent", WITH_CHILD, log=tmp_path / "parent.log"))
        pids = [pid for group in supervisor.pids().values() for pid in group]
        child = int((tmp_path / "parent.log").read_text().split()[0])

        began_s = clock()
        await supervisor.stop(grace_s=0.5)

    assert clock() - began_s < 5
    assert all(gone(pid) for pid in [*pids, child])


async def test_children_of_a_killed_part_are_killed_too(tmp_path: Path) -> None:
    log = tmp_path / "parent.log"
    async with running(tmp_path) as supervisor:
        await supervisor.start(part("parent", WITH_CHILD, log=log))
        child = int(log.read_text().split()[0])
        os.kill(supervisor.pids()["parent"][0], signal.SIGKILL)
        await until(lambda: gone(child))


async def test_a_stop_during_the_start_leaves_no_process(tmp_path: Path) -> None:
    async with running(tmp_path) as supervisor:
        start = asyncio.create_task(supervisor.start(part("slow", SLEEP, log=tmp_path / "never")))
        await until(lambda: supervisor.pids().get("slow"))
        (pid,) = supervisor.pids()["slow"]
        start.cancel()

    assert gone(pid)


async def test_a_full_disk_is_reported_and_stops_no_part(tmp_path: Path) -> None:
    (tmp_path / "one.log").symlink_to("/dev/full")
    (tmp_path / f".dev.json.{os.getpid()}.new").symlink_to("/dev/full")
    told: list[str] = []
    async with Supervisor.running(
        home=tmp_path,
        logs=tmp_path,
        on_change=lambda: write_json(tmp_path / "dev.json", supervisor.pids(), durable=False),
        on_failure=told.append,
    ) as supervisor:
        await supervisor.start(part("one", QUIET))
        (first,) = supervisor.pids()["one"]
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.pids()["one"] not in ([], [first]))
        (second,) = supervisor.pids()["one"]

    assert gone(second)
    full = "No space left on device"
    assert {f"cannot record which parts run: {full}", f"cannot write {tmp_path / 'one.log'}: {full}"} <= {*told}


@pytest.fixture
def home() -> Generator[Home]:
    """A home that PostgreSQL's account can reach: otherwise root's data would be kept outside it."""
    with open_folder() as folder:
        yield Home(folder / "home")


async def test_an_error_in_one_part_s_runner_leaves_no_process_and_all_other_parts_are_stopped(
    home: Home, tmp_path: Path
) -> None:
    """Stopping the control plane raises the error, but simulators and stores are stopped all the same."""
    pids: list[int] = []

    def see() -> None:
        pids.extend(pid for pid in supervisor.pids().get("api", []) if pid not in pids)
        if len(pids) > 1:
            raise RuntimeError("unexpected error")

    async with Supervisor.running(home=tmp_path, logs=tmp_path, on_change=see) as supervisor:
        stack = Stack(home, supervisor, port=free_port(), workers=1, environ={})
        for name in ("api", "cloudsim", "store"):
            await supervisor.start(part(name, QUIET))
        others = [supervisor.pids()[name][0] for name in ("cloudsim", "store")]
        os.kill(pids[0], signal.SIGKILL)
        await until(lambda: len(pids) > 1 and gone(pids[1]))
        pids.clear()
        async with stack._http:
            with pytest.raises(RuntimeError, match="unexpected error"):
                await stack._stop()

        assert all(gone(pid) for pid in others)
        assert supervisor.pids() == {}


async def test_an_error_in_the_start_of_a_part_is_raised_unchanged(tmp_path: Path) -> None:
    async def prepare() -> None:
        raise RuntimeError("unexpected error")

    supervised = running(tmp_path)
    supervisor = await supervised.__aenter__()
    with pytest.raises(RuntimeError, match="unexpected error"):
        await supervisor.start(replace(part("api", QUIET), prepare=prepare))

    # The stop raises it as well.
    with pytest.raises(RuntimeError, match="unexpected error"):
        await supervised.__aexit__(None, None, None)


async def test_former_master_keys_are_given_to_parts_with_the_master_key_and_to_commands(
    home: Home, tmp_path: Path
) -> None:
    given = {"HYDRACORE_MASTER_KEYS_FORMER": "b" * 43}

    async with running(tmp_path) as supervisor:
        stack = Stack(home, supervisor, port=free_port(), workers=1, environ=given)
        parts = stack._control_plane()
        await stack._http.aclose()

    assert given.items() <= stack.managed_settings().items()
    assert all(given.items() <= each.environ.items() for each in parts if "HYDRACORE_MASTER_KEY" in each.environ)
    assert not any(given.keys() & each.environ.keys() for each in (stack._cloudsim(), stack._modelsim()))


async def test_process_ids_of_parts_of_one_kind_are_listed_together(tmp_path: Path) -> None:
    async with running(tmp_path) as supervisor:
        await supervisor.start(part("worker-1", SLEEP, kind="worker"))
        await supervisor.start(part("worker-2", SLEEP, kind="worker"))

        assert len(supervisor.pids()["worker"]) == 2
