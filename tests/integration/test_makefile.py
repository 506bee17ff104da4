"""`make` on a machine that lacks something, or with remains of an earlier run."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cloudsim_fixtures import REPOSITORY

#: A stand-in for a Python of some version, with or without pip. It installs nothing, and copies itself into environments.
STAND_IN = """#!/bin/sh
case "$*" in
    --version) echo Python {text} ;;
    "-m pip --version") exit {without_pip} ;;
    "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    -c*) exec {python} -c "import sys; sys.version_info = {version}; $2" ;;
    *) exit 1 ;;
esac
"""
OLD, NEW = (3, 10, 12), (3, 99, 0)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files of a clone from which an environment is made, with nothing to install."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "requirements.lock").write_text("")
    return tmp_path


def make(clone: Path, *words: str, target: str = ".venv/.runtime") -> subprocess.CompletedProcess[str]:
    # Without the variables that an outer make sets for its commands.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", target, *words], cwd=clone, env=environ, capture_output=True, text=True, check=False)


def python_of(version: tuple[int, ...], path: Path, *, with_pip: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text, without_pip = ".".join(map(str, version)), int(not with_pip)
    path.write_text(STAND_IN.format(python=sys.executable, version=version, text=text, without_pip=without_pip))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# Debian leaves an environment without pip if its package python3-venv is missing.
@pytest.mark.parametrize(("version", "with_pip"), [(NEW, False), (OLD, True)], ids=["without pip", "of an old Python"])
def test_an_environment_without_pip_or_of_an_old_python_is_made_anew(
    clone: Path, tmp_path: Path, *, version: tuple[int, ...], with_pip: bool
) -> None:
    left = python_of(version, clone / ".venv/bin/python", with_pip=with_pip)
    named = python_of(NEW, tmp_path / "named/python3.99")

    make(clone, f"PYTHON={named}")

    assert left.read_text() == named.read_text()


def test_up_is_given_the_port_and_the_directory_that_make_was_given(clone: Path) -> None:
    hydracore = clone / ".venv/bin/hydracore"
    hydracore.parent.mkdir(parents=True)
    hydracore.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    hydracore.chmod(0o755)
    (clone / ".venv/.runtime").touch()

    done = make(clone, "--silent", "PORT=8099", "DIR=another place", target="up")

    assert (done.returncode, done.stdout.splitlines()) == (0, ["up", "--home", "another place", "--port", "8099"])


def test_a_complete_environment_is_kept(clone: Path) -> None:
    kept = python_of(NEW, clone / ".venv/bin/python")

    make(clone, "PYTHON=nothing-of-the-kind")

    assert (kept.is_file(), list((clone / ".venv").iterdir())) == (True, [kept.parent])


@pytest.mark.parametrize("python", ["old", "missing"])
def test_an_old_or_missing_python_is_reported_before_anything_is_made(clone: Path, python: str) -> None:
    named = python_of(OLD, clone / "python3.10") if python == "old" else clone / "nothing"

    done = make(clone, f"PYTHON={named}")

    reason = "Python 3.10.12" if python == "old" else "not found"
    assert (done.returncode, done.stdout) == (2, "")
    message = done.stderr.splitlines()[0]
    assert message.startswith(f"HydraCore needs Python 3.11 or newer, and `{named} --version` says ")
    assert reason in message
    assert message.endswith(": name another, as in: make demo PYTHON=python3.12")
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("name", ['a"b', "a$b", "a`b", "a\\b"])
def test_a_directory_below_which_postgresql_cannot_start_is_reported_before_anything_is_made(
    clone: Path, name: str
) -> None:
    place = clone.rename(clone.with_name(f"{clone.name}-{name}"))

    done = make(place, f"PYTHON={sys.executable}")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("PostgreSQL cannot be started below a directory that has one of ")
    assert not (place / ".venv").exists()
