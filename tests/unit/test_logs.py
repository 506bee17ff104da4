"""Log lines that cannot be written: they are lost, and the process that writes them goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

#: A program and a library of it, which log before, while and after there is room for only a piece of a line.
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

#: A program that fails only if its log cannot be written.
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
def test_a_process_goes_on_when_its_log_cannot_be_written(output: Callable[[], AbstractContextManager[int]]) -> None:
    with output() as stderr:
        done = subprocess.run([sys.executable, "-c", SPEAK], stdout=subprocess.PIPE, stderr=stderr, check=False)

    assert (done.returncode, done.stdout) == (0, b"goes on\n")


def test_a_process_without_standard_error_goes_on_and_logs_to_no_other_file(tmp_path: Path) -> None:
    """Descriptor 2 is then given to the first file that is opened: here one that is not for logs."""
    other = tmp_path / "other"
    program = f"import os; file = open({str(other)!r}, 'w'); assert file.fileno() == 2\n{SPEAK}"

    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", program], stdout=subprocess.PIPE, check=False
    )

    assert (done.returncode, done.stdout, other.read_text()) == (0, b"goes on\n", "")


def test_a_log_line_that_is_cut_off_does_not_damage_other_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("ab") as stderr:
        subprocess.run([sys.executable, "-c", CUT_OFF], stderr=stderr, check=True)

    first, torn, *others = log.read_text().splitlines()
    assert json.loads(first)["event"] == "written"
    assert torn == first[:5]
    assert [json.loads(line)["event"] for line in others] == ["written again", "written too"]
