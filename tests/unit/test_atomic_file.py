"""A write replaces a regular file or creates one, and a link stays a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hydracore.audit.atomic_file import atomic_file
from hydracore.audit.errors import FileExists, NoRegularFile


def write(path: Path, *, replace: bool) -> None:
    with atomic_file(path, replace=replace) as draft:
        draft.write_text("new")


@pytest.mark.parametrize("replace", [False, True])
def test_a_pipe_or_a_link_to_a_pipe_is_never_replaced(tmp_path: Path, *, replace: bool) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)

    for path in (pipe, link):
        with pytest.raises(NoRegularFile, match=f"{path} is not a regular file"), atomic_file(path, replace=replace):
            pytest.fail("the body must not run")

    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink()
    assert {each.name for each in tmp_path.iterdir()} == {"pipe", "link"}


def test_a_pipe_that_was_created_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "backup"

    with pytest.raises(NoRegularFile), atomic_file(path, replace=True):
        os.mkfifo(path)

    assert stat.S_ISFIFO(path.stat().st_mode)
    assert [each.name for each in tmp_path.iterdir()] == ["backup"]


def test_the_target_of_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target, link, dangling = elsewhere / "old", tmp_path / "link", tmp_path / "dangling"
    target.write_text("old")
    link.symlink_to(target)
    dangling.symlink_to(Path("elsewhere", "none yet"))

    with pytest.raises(FileExists):
        write(link, replace=False)
    write(link, replace=True)
    write(dangling, replace=False)

    assert (link.is_symlink(), dangling.is_symlink()) == (True, True)
    assert {each.name: each.read_text() for each in elsewhere.iterdir()} == {"old": "new", "none yet": "new"}
    assert {each.name for each in tmp_path.iterdir()} == {"elsewhere", "link", "dangling"}
