"""A log that others write to is kept from growing, and goes on."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from hydracore.log_files import LOG_BYTES_MAX, rotate, rotate_periodically
from tests.disk import room_in_files
from tests.waiting import until


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "part.log"


@pytest.fixture
def large(log: Path) -> Path:
    log.touch()
    os.truncate(log, LOG_BYTES_MAX + 1)
    return log


def test_a_small_one_stays_as_it_is(log: Path) -> None:
    log.write_text("line\n")

    rotate(log, bytes_max=5)

    assert {path.name: path.read_text() for path in log.parent.iterdir()} == {"part.log": "line\n"}


def test_of_a_large_one_the_last_content_is_kept_beside_and_its_writer_goes_on(log: Path) -> None:
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


def test_one_that_finds_no_room_beside_it_stays_and_takes_no_more(log: Path) -> None:
    log.write_text("a line\n")

    with room_in_files(3), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        rotate(log, bytes_max=3)

    assert {path.name: path.read_text() for path in log.parent.iterdir()} == {"part.log": "a line\n"}


async def test_what_cannot_be_set_aside_keeps_no_other_from_it(large: Path, tmp_path: Path) -> None:
    looking = asyncio.create_task(
        rotate_periodically(lambda: [tmp_path / "none.log", tmp_path, large], interval_s=0.01)
    )
    await until(lambda: not large.stat().st_size)
    looking.cancel()

    assert large.with_name("part.log.old").stat().st_size == LOG_BYTES_MAX + 1
