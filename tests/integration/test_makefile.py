"""`make` on a machine that lacks something, and on what an earlier try has left there."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cloudsim_fixtures import REPOSITORY

#: Stands for a Python of some version that has pip. It installs nothing: the environment of these tests is not its own.
STAND_IN = """#!/bin/sh
case "$*" in
    --version) echo Python {text} ;;
    "-m pip --version") ;;
    -c*) exec {python} -c "import sys; sys.version_info = {version}; $2" ;;
    *) exit 1 ;;
esac
"""
OLD, NEW = (3, 10, 12), (3, 99, 0)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of one as an environment is made from: nothing is to be installed into it."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "requirements.lock").write_text("")
    return tmp_path


def make(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # What an outer make has told its commands is none of this one's business.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", ".venv/.runtime", *words], cwd=clone, env=environ, capture_output=True, text=True, check=False
    )


def python_of(version: tuple[int, ...], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN.format(python=sys.executable, version=version, text=".".join(map(str, version))))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def is_whole(clone: Path) -> bool:
    """Whether there is an environment of this Python, with pip."""
    python = clone / ".venv/bin/python"
    check = f"import pip, sys; assert sys.version_info[:3] == {tuple(sys.version_info[:3])}"
    return subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0


def test_an_environment_without_pip_is_made_anew(clone: Path) -> None:
    # What Debian leaves where its package python3-venv is missing.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    assert not is_whole(clone)

    make(clone, f"PYTHON={sys.executable}")

    assert is_whole(clone)


def test_an_environment_of_an_old_python_is_made_anew(clone: Path) -> None:
    python_of(OLD, clone / ".venv/bin/python")

    make(clone, f"PYTHON={sys.executable}")

    assert is_whole(clone)


def test_an_environment_that_is_whole_is_kept(clone: Path) -> None:
    kept = python_of(NEW, clone / ".venv/bin/python")

    make(clone, "PYTHON=nothing-of-the-kind")

    assert (kept.is_file(), list((clone / ".venv").iterdir())) == (True, [kept.parent])


@pytest.mark.parametrize("python", ["old", "missing"])
def test_a_python_that_will_not_do_is_told_of_before_anything_is_made(clone: Path, python: str) -> None:
    named = python_of(OLD, clone / "python3.10") if python == "old" else clone / "nothing"

    done = make(clone, f"PYTHON={named}")

    said = "Python 3.10.12" if python == "old" else "not found"
    assert (done.returncode, done.stdout) == (2, "")
    told = done.stderr.splitlines()[0]
    assert told.startswith(f"HydraCore needs Python 3.11 or newer, and `{named} --version` says ")
    assert said in told
    assert told.endswith(": name another, as in: make demo PYTHON=python3.12")
    assert not (clone / ".venv").exists()
