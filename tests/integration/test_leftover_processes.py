"""Processes left by a killed supervisor are ended by the next one on the same home. Processes of others never are."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from hydracore.embedded.files import tail
from hydracore.embedded.leftovers import Mark, device_and_inode, stop_leftovers
from tests.supervising import QUIET, STUBBORN, gone, part, running
from tests.waiting import until

#: A supervisor in a process of its own; it never ends by itself.
SUPERVISE = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.supervising import QUIET, STUBBORN, WITH_CHILD, part, running

async def main(folder):
    async with running(folder) as supervisor:
        await supervisor.start(PART)
        print(*supervisor.pids().popitem()[1], flush=True)
        await asyncio.sleep(600)

asyncio.run(main(Path(sys.argv[1])))
"""


async def left_by_a_killed_supervisor(folder: Path, program: str) -> int:
    """A process of the part that `program` is, whose supervisor was killed -9."""
    code = SUPERVISE.replace("PART", f"part('left', {program}, log=folder / 'left.log')")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(folder), stdout=subprocess.PIPE)
    assert process.stdout is not None
    left = int(await process.stdout.readline())
    process.kill()
    await process.communicate()
    assert not gone(left)
    return left


async def test_leftover_processes_of_a_killed_supervisor_are_stopped_by_the_next_one(tmp_path: Path) -> None:
    """A real supervisor is killed -9; its processes live on until a supervisor starts on the same home."""
    left = await left_by_a_killed_supervisor(tmp_path, "STUBBORN")
    # No file is needed to find it: a full disk would prevent writing one.
    assert os.listdir(tmp_path) == ["left.log"]  # noqa: PTH208 - names are all that is wanted

    await asyncio.to_thread(stop_leftovers, tmp_path, seconds_max=0.5)

    assert gone(left)


async def test_a_child_of_a_leftover_process_is_ended_even_if_the_leftover_itself_has_ended(tmp_path: Path) -> None:
    left = await left_by_a_killed_supervisor(tmp_path, "WITH_CHILD")
    child = int((tmp_path / "left.log").read_text().split()[0])
    os.kill(left, signal.SIGKILL)
    await until(lambda: gone(left))
    assert not gone(child)

    await asyncio.to_thread(stop_leftovers, tmp_path)

    assert gone(child)


async def test_a_process_is_found_even_if_its_supervisor_was_killed_while_starting_it(tmp_path: Path) -> None:
    """The process itself kills its supervisor, before the supervisor can have recorded its pid."""
    command = '("/bin/sh", "-c", "kill -9 $PPID; echo $$; exec sleep 600")'
    code = SUPERVISE.replace("PART", f"__import__('dataclasses').replace(part('left', ''), command={command})")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    await process.wait()
    await until(lambda: tail(tmp_path / "left.log"))
    left = int(tail(tmp_path / "left.log"))
    assert not gone(left)

    await asyncio.to_thread(stop_leftovers, tmp_path)

    assert gone(left)


async def test_starting_a_copy_of_a_home_ends_no_process_of_the_original(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    async with running(original) as supervisor:
        await supervisor.start(part("runs", STUBBORN, log=original / "runs.log"))
        (pid,) = supervisor.pids()["runs"]
        shutil.copytree(original, copy)

        async with running(copy):
            assert not gone(pid)


async def test_leftover_processes_of_a_home_that_was_moved_are_ended(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    left = await left_by_a_killed_supervisor(before, "STUBBORN")

    before.rename(after)

    await asyncio.to_thread(stop_leftovers, after, seconds_max=0.5)

    assert gone(left)


def test_a_foreign_process_with_a_malformed_or_different_mark_is_not_ended(tmp_path: Path) -> None:
    ours = Mark(name="left", stop_signal=signal.SIGKILL, home=device_and_inode(tmp_path)).environ()
    (variable,) = ours
    command = [sys.executable, "-c", QUIET]
    for value in ("", "{", "\udcff", ours[variable].replace(":9", ":4711")):
        with subprocess.Popen(command, env={variable: value}) as stranger:
            try:
                stop_leftovers(tmp_path)
                assert stranger.poll() is None
            finally:
                stranger.kill()


def test_a_process_that_inherits_the_mark_ends_neither_itself_nor_its_parent(tmp_path: Path) -> None:
    mark = Mark(name="left", stop_signal=signal.SIGKILL, home=device_and_inode(tmp_path)).environ()
    look = f"from hydracore.embedded.leftovers import *; stop_leftovers(Path({str(tmp_path)!r})); print('goes on')"
    shell = ["/bin/sh", "-c", '"$@"; echo goes on too', "sh", sys.executable, "-c", look]

    done = subprocess.run(shell, env={**os.environ, **mark}, capture_output=True, text=True, check=False)

    assert done.stdout == "goes on\ngoes on too\n", done.stderr
