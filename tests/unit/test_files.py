"""Files that are replaced as a whole, and when they are on the disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hydracore.embedded.files import write_json
from hydracore.files import write_atomic
from tests.disk import steps_fixture

__all__ = ["steps_fixture"]


def test_a_durable_file_is_on_the_disk_and_so_is_its_name(tmp_path: Path, steps: list[str]) -> None:
    write_json(tmp_path / "a", {"b": 1})

    draft = f".a.{os.getpid()}.new"
    assert steps == [f"fsync {draft}", f"rename {draft} a", f"fsync {tmp_path.name}"]


def test_a_file_that_need_not_be_durable_waits_for_no_disk(tmp_path: Path, steps: list[str]) -> None:
    write_atomic(tmp_path / "a", b"1", durable=False)

    assert steps == [f"rename .a.{os.getpid()}.new a"]


def test_a_replaced_file_is_its_owner_s_alone_and_no_draft_is_left(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o644)

    write_atomic(tmp_path / "a", b"new")

    assert (tmp_path / "a").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
