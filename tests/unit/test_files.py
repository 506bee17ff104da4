"""Files that are replaced as a whole, and when they are on the disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hydracore.embedded.files import lock_directory, write_json
from hydracore.files import write_atomic
from tests.disk import limited_file_size, steps_fixture

__all__ = ["steps_fixture"]


def test_a_durable_file_is_synced_before_its_rename_and_its_directory_after_it(
    tmp_path: Path, steps: list[str]
) -> None:
    write_json(tmp_path / "a", {"b": 1})

    draft = f".a.{os.getpid()}.new"
    assert steps == [f"fsync {draft}", f"rename {draft} a", f"fsync {tmp_path.name}"]


def test_a_file_that_need_not_be_durable_is_not_synced(tmp_path: Path, steps: list[str]) -> None:
    write_atomic(tmp_path / "a", b"1", durable=False)

    assert steps == [f"rename .a.{os.getpid()}.new a"]


def test_a_replaced_file_is_accessible_only_to_its_owner_and_no_draft_is_left(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o644)

    write_atomic(tmp_path / "a", b"new")

    assert (tmp_path / "a").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_write_that_finds_no_room_keeps_the_old_content_and_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    with limited_file_size(3), pytest.raises(OSError, match=rf"File too large: '{tmp_path / 'a'}'"):
        write_atomic(tmp_path / "a", b"newer")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_lock_file_that_finds_no_room_is_named_in_the_error(tmp_path: Path) -> None:
    lock = tmp_path / "lock"

    with limited_file_size(0), pytest.raises(OSError, match=f"File too large: '{lock}'"), lock_directory(lock):
        pass
    with lock_directory(lock):
        assert lock.read_text() == f"{os.getpid()}\n"
