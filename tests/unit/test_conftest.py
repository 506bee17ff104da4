"""What the suite's own hooks promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: A plugin that fails while it reports the second of two tests.
BREAKS = """
def pytest_runtest_makereport(item, call):
    assert item.name != "test_second"
"""
TESTS = "def test_first(): pass\ndef test_second(): pass\n"


def test_a_run_in_which_pytest_itself_fails_does_not_pass(tmp_path: Path) -> None:
    tmp_path.joinpath("conftest.py").write_text(BREAKS)
    tmp_path.joinpath("test_two.py").write_text(TESTS)

    program = (sys.executable, "-m", "pytest", "-p", "tests.conftest", "-n", "1", "-q", "--rootdir", str(tmp_path))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")} | {
        "PYTHONPATH": str(ROOT)
    }
    ended = subprocess.run(
        [*program, "test_two.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )

    assert "1 passed" in ended.stdout
    assert ended.returncode == pytest.ExitCode.INTERNAL_ERROR
