"""The wheel and the source distribution contain all that their documents and users rely on."""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.cloudsim_fixtures import REPOSITORY

PACKAGES = ("events", "projections", "workers", "hydracore")


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A directory with the wheel and the source distribution."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", tmp_path], cwd=REPOSITORY, check=True, capture_output=True
    )
    return tmp_path


def test_the_wheel_and_sdist_contain_the_promised_files_and_metadata(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    (sdist,) = built.glob("*.tar.gz")

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(archive.read(metadata))
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}

    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert "hydracore/db/schema.sql" in names
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= set(said.get_all("Classifier", ()))
    assert said["Keywords"]
    documents = {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("docs/**/*.md")}
    assert documents | {"README.md", "Makefile", "requirements.lock", "requirements-dev.lock"} <= sources
