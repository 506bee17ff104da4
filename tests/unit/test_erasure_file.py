"""The file of erasures: an incomplete line that a crash left is skipped, a damaged line is an error."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hydracore.audit.erasure_file import Erasure, ErasureFile
from hydracore.audit.errors import ErasuresUnknown
from tests.disk import steps_fixture

__all__ = ["steps_fixture"]


def erasure(customer_id: str) -> Erasure:
    return Erasure(tenant_id="t", customer_id=customer_id, ordered_at=datetime(2026, 11, 25, tzinfo=UTC), by="test")


def test_an_incomplete_line_is_skipped_even_between_other_lines(tmp_path: Path) -> None:
    file = ErasureFile(tmp_path / "erasures.jsonl")
    file.append([erasure("ada")])
    with file.path.open("ab") as raw:
        raw.write(b'{"tenant_id":"t","customer_id":"b')
    file.append([erasure("bob")])

    assert list(file.erasures()) == [("t", "ada"), ("t", "bob")]


def test_an_added_erasure_is_synced_to_disk_and_so_is_the_name_of_a_new_file(tmp_path: Path, steps: list[str]) -> None:
    file = ErasureFile(tmp_path / "erasures.jsonl")

    file.append([erasure("ada")])
    file.append([erasure("bob")])

    assert steps == ["fsync erasures.jsonl", f"fsync {tmp_path.name}", "fsync erasures.jsonl"]


def test_a_damaged_line_raises_an_error(tmp_path: Path) -> None:
    file = ErasureFile(tmp_path / "erasures.jsonl")
    file.append([erasure("ada"), erasure("bob")])
    file.path.write_bytes(file.path.read_bytes().replace(b'"customer_id":"ada"', b'"customer_id":#ada"'))

    with pytest.raises(ErasuresUnknown, match="damaged"):
        file.erasures()


def test_a_pipe_is_refused_as_an_erasure_file(tmp_path: Path) -> None:
    pipe = tmp_path / "erasures.jsonl"
    os.mkfifo(pipe)

    with pytest.raises(OSError, match="not a regular file"):
        ErasureFile(pipe).append([erasure("ada")])
