"""The supervisor, with tiny real processes: restart with backoff, bounded stops, and what breaks a part or a runner."""

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


async def test_a_part_that_dies_is_started_again(tmp_path: Path) -> None:
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


async def test_a_log_that_grows_is_set_aside_while_its_part_runs(tmp_path: Path) -> None:
    log = tmp_path / "talks.log"
    program = f"print('x' * {LOG_BYTES_MAX}); {SLEEP}"
    async with running(tmp_path) as supervisor:
        await supervisor.start(part("talks", program, log=log))
        (pid,) = supervisor.pids()["talks"]
        await until(lambda: log.stat().st_size == 0)

        assert supervisor.pids()["talks"] == [pid]

    assert log.with_name("talks.log.old").stat().st_size > LOG_BYTES_MAX
    assert log.read_text().startswith(f"talks (pid {pid}) ended")


async def test_restarts_come_with_a_growing_pause(tmp_path: Path) -> None:
    stamps = tmp_path / "stamps"
    program = f"import time; open({str(stamps)!r}, 'a').write(f'{{time.monotonic()}}\\n'); time.sleep(0.2)"
    async with running(tmp_path) as supervisor:
        await supervisor.start(part("short", program))
        await until(lambda: stamps.exists() and len(stamps.read_text().split()) >= 4)

    first, second, third, fourth = (float(stamp) for stamp in stamps.read_text().split()[:4])
    assert second - first >= 0.4
    assert third - second >= 0.6
    assert fourth - third >= 1.0


async def test_a_part_that_cannot_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
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


async def test_a_stubborn_part_and_its_children_are_killed_in_time(tmp_path: Path) -> None:
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


async def test_children_of_a_killed_main_process_go_before_the_restart(tmp_path: Path) -> None:
    log = tmp_path / "parent.log"
    async with running(tmp_path) as supervisor:
        await supervisor.start(part("parent", WITH_CHILD, log=log))
        child = int(log.read_text().split()[0])
        os.kill(supervisor.pids()["parent"][0], signal.SIGKILL)
        await until(lambda: gone(child))


async def test_a_stop_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as supervisor:
        start = asyncio.create_task(supervisor.start(part("slow", SLEEP, log=tmp_path / "never")))
        await until(lambda: supervisor.pids().get("slow"))
        (pid,) = supervisor.pids()["slow"]
        start.cancel()

    assert gone(pid)


async def test_a_full_disk_costs_what_is_written_there_and_no_part(tmp_path: Path) -> None:
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
    """One that PostgreSQL's account can reach: else root's data would get a place of its own outside."""
    with open_folder() as folder:
        yield Home(folder / "home")


async def test_what_breaks_a_part_runner_leaves_no_process_and_keeps_no_other_from_being_stopped(
    home: Home, tmp_path: Path
) -> None:
    """The stop of the control plane tells what is broken; those of simulators and stores come all the same."""
    pids: list[int] = []

    def see() -> None:
        pids.extend(pid for pid in supervisor.pids().get("api", []) if pid not in pids)
        if len(pids) > 1:
            raise RuntimeError("nobody has thought of this")

    async with Supervisor.running(home=tmp_path, logs=tmp_path, on_change=see) as supervisor:
        stack = Stack(home, supervisor, port=free_port(), workers=1, environ={})
        for name in ("api", "cloudsim", "store"):
            await supervisor.start(part(name, QUIET))
        others = [supervisor.pids()[name][0] for name in ("cloudsim", "store")]
        os.kill(pids[0], signal.SIGKILL)
        await until(lambda: len(pids) > 1 and gone(pids[1]))
        pids.clear()
        async with stack._http:
            with pytest.raises(RuntimeError, match="nobody has thought of this"):
                await stack._stop()

        assert all(gone(pid) for pid in others)
        assert supervisor.pids() == {}


async def test_what_breaks_the_start_of_a_part_is_told_as_it_is(tmp_path: Path) -> None:
    async def prepare() -> None:
        raise RuntimeError("nobody has thought of this")

    supervised = running(tmp_path)
    supervisor = await supervised.__aenter__()
    with pytest.raises(RuntimeError, match="nobody has thought of this"):
        await supervisor.start(replace(part("api", QUIET), prepare=prepare))

    # Whoever stops them is told, too.
    with pytest.raises(RuntimeError, match="nobody has thought of this"):
        await supervised.__aexit__(None, None, None)


async def test_former_master_keys_reach_whoever_has_the_master_key_and_an_operator_s_commands(
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


async def test_parts_of_one_kind_are_counted_together(tmp_path: Path) -> None:
    async with running(tmp_path) as supervisor:
        await supervisor.start(part("worker-1", SLEEP, kind="worker"))
        await supervisor.start(part("worker-2", SLEEP, kind="worker"))

        assert len(supervisor.pids()["worker"]) == 2
