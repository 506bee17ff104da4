"""Logs that nobody takes: they are lost, and whoever writes them goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

#: A part, and a library that it stands on, which log before and after there is room for one line and a piece of the next.
CUT_OFF = """
import logging, os, resource, structlog
from hydracore import logs

logs.configure("info")
log, library = structlog.get_logger("part"), logging.getLogger("library")

log.info("written")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (os.fstat(2).st_size + 5, hard))
log.info("cut off")
log.info("lost")
library.warning("lost")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.info("written again")
library.warning("written too")
"""

#: The same, with nothing but what its output is to make it fail.
SPEAK = """
import logging, sys, structlog
from hydracore import logs

logs.configure("info")
try:
    raise RuntimeError("something else")
except RuntimeError:
    structlog.get_logger("part").exception("failed")
logging.getLogger("library").warning("complained")
print("goes on", flush=True)
"""


@contextmanager
def full_disk() -> Generator[int]:
    with Path("/dev/full").open("wb") as file:
        yield file.fileno()


@contextmanager
def pipe_without_a_reader() -> Generator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@pytest.mark.parametrize("output", [full_disk, pipe_without_a_reader])
def test_whoever_logs_goes_on_where_nothing_takes_it(output: Callable[[], AbstractContextManager[int]]) -> None:
    with output() as stderr:
        done = subprocess.run([sys.executable, "-c", SPEAK], stdout=subprocess.PIPE, stderr=stderr, check=False)

    assert (done.returncode, done.stdout) == (0, b"goes on\n")


def test_whoever_has_no_output_at_all_goes_on_and_writes_to_no_other_file(tmp_path: Path) -> None:
    """Number 2 is then the first file that is opened: here one that is not for logs."""
    other = tmp_path / "other"
    program = f"import os; file = open({str(other)!r}, 'w'); assert file.fileno() == 2\n{SPEAK}"

    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", program], stdout=subprocess.PIPE, check=False
    )

    assert (done.returncode, done.stdout, other.read_text()) == (0, b"goes on\n", "")


def test_a_line_that_is_cut_off_spoils_no_other(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("ab") as stderr:
        subprocess.run([sys.executable, "-c", CUT_OFF], stderr=stderr, check=True)

    first, torn, *others = log.read_text().splitlines()
    assert json.loads(first)["event"] == "written"
    assert torn == first[:5]
    assert [json.loads(line)["event"] for line in others] == ["written again", "written too"]
