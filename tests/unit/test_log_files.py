"""A log file that another process writes to is rotated when it has grown large, and its writer goes on."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from hydracore.log_files import LOG_BYTES_MAX, rotate, rotate_periodically
from tests.disk import limited_file_size
from tests.waiting import until


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "part.log"


@pytest.fixture
def large(log: Path) -> Path:
    log.touch()
    os.truncate(log, LOG_BYTES_MAX + 1)
    return log


def test_a_small_log_is_not_rotated(log: Path) -> None:
    log.write_text("line\n")

    rotate(log, bytes_max=5)

    assert {path.name: path.read_text() for path in log.parent.iterdir()} == {"part.log": "line\n"}


def test_a_large_log_is_copied_to_an_old_file_and_emptied_while_its_writer_goes_on(log: Path) -> None:
    with log.open("a") as writer:
        for line in ("first\n", "second\n"):
            writer.write(line)
            writer.flush()
            rotate(log, bytes_max=3)
        writer.write("third\n")

    assert {path.name: path.read_text() for path in log.parent.iterdir()} == {
        "part.log": "third\n",
        "part.log.old": "second\n",
    }


def test_a_log_that_cannot_be_copied_for_lack_of_room_stays_and_leaves_no_copy(log: Path) -> None:
    log.write_text("a line\n")

    with limited_file_size(3), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        rotate(log, bytes_max=3)

    assert {path.name: path.read_text() for path in log.parent.iterdir()} == {"part.log": "a line\n"}


async def test_a_log_that_cannot_be_rotated_does_not_stop_the_rotation_of_others(large: Path, tmp_path: Path) -> None:
    rotating = asyncio.create_task(
        rotate_periodically(lambda: [tmp_path / "none.log", tmp_path, large], interval_s=0.01)
    )
    await until(lambda: not large.stat().st_size)
    rotating.cancel()

    assert large.with_name("part.log.old").stat().st_size == LOG_BYTES_MAX + 1
