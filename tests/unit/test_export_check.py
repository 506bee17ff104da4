"""An export proves itself with nothing but the public key, whole and in words, and what is no whole export is none.

The exports are those that the first version of the format wrote (`tests/corpus/export-v1-*`): each later version must read them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner

from hydracore.audit import export_records as r
from hydracore.audit.errors import NotAnExport
from hydracore.audit.export_files import open_writer, read_records
from hydracore.cli import main
from tests.exports import INSTANCE, TENANT, TENANT_PARQUET, Forger, found, verified


@pytest.mark.parametrize("path", [TENANT, TENANT_PARQUET], ids=lambda path: path.suffix)
def test_what_the_first_version_wrote_is_read_and_proven(path: Path) -> None:
    report = verified(path)

    assert (report.findings, report.notes, report.signed) == ([], [], True)
    assert (report.tenant_id, report.instance_id) == ("acme", None)
    assert (report.events, report.commands, report.streams, report.steps, report.seals) == (19, 15, 4, 0, 1)


def test_an_instance_is_proven_though_of_others_nothing_but_steps_is_there() -> None:
    report = verified(INSTANCE)

    assert (report.findings, report.signed) == ([], False)
    assert report.instance_id == UUID("bd7c9d8d-101f-5494-b440-91d05382de06")
    assert (report.events, report.commands, report.streams, report.steps, report.seals) == (5, 3, 1, 2, 2)
    (note,) = report.notes
    assert "not signed" in note


def test_who_names_no_key_is_told_that_an_export_is_not_signed_and_not_alarmed() -> None:
    report = verified(INSTANCE, public_key=None, allow_unsigned=False)

    assert report.findings == []
    assert any("not signed" in note for note in report.notes)


@pytest.mark.parametrize(
    ("path", "counted"),
    [
        (INSTANCE, "3 commands of instance bd7c9d8d-101f-5494-b440-91d05382de06, "),
        (TENANT, "15 commands of 4 instances of tenant acme, "),
    ],
)
def test_whose_an_export_is_is_said_in_words(path: Path, counted: str) -> None:
    done = CliRunner().invoke(main, ["audit", "verify-export", str(path), "--allow-unsigned"])

    assert counted in done.stdout


def test_both_formats_hold_the_same_records_to_the_last_bit() -> None:
    lines, rows = ([placed.record for placed in read_records(path)] for path in (TENANT, TENANT_PARQUET))

    assert len(lines) == len(rows) == 39
    # All but the moment at which they were made, and with it the digest of the whole.
    assert lines[1:-1] == rows[1:-1]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_is_written_again_is_the_same(form: Any, tmp_path: Path) -> None:
    fingerprint = r.Fingerprint()
    with open_writer(tmp_path / "again", form) as write:
        for _, record in read_records(TENANT):
            write(record, fingerprint.add(record))

    assert (verified(tmp_path / "again").findings, verified(tmp_path / "again").signed) == ([], True)


@pytest.mark.parametrize("path", [TENANT, TENANT_PARQUET], ids=lambda path: path.suffix)
def test_a_file_that_was_cut_off_anywhere_is_no_whole_export(path: Path, tmp_path: Path) -> None:
    whole, cut = path.read_bytes(), tmp_path / "cut"
    for size in (len(whole) - 2, len(whole) - 100, len(whole) // 2, 2_000):
        cut.write_bytes(whole[:size])

        (finding, *_) = verified(cut).findings

        assert finding.kind in {"record_unreadable", "file_truncated"}


def test_an_export_that_lacks_nothing_but_the_end_of_its_last_line_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "export.jsonl"
    path.write_bytes(TENANT.read_bytes().removesuffix(b"\n"))

    report = verified(path)

    assert (report.findings, report.signed) == ([], True)


def test_an_export_without_its_header_is_an_edited_one(tmp_path: Path) -> None:
    forger = Forger(TENANT)
    del forger.records[0]

    assert found(forger.saved(tmp_path, fit=False)) == ["file_edited -"]


def test_what_is_no_export_and_what_is_a_later_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"\n", b"{}\n", b"\0" * 1000, INSTANCE.read_bytes().replace(b"hydracore-export", b"x")):
        path.write_bytes(content)
        with pytest.raises(NotAnExport, match="is not a HydraCore export"):
            verified(path)
    path.write_bytes(INSTANCE.read_bytes().replace(b'"format_version":1,', b'"format_version":2,"new":1,'))

    with pytest.raises(NotAnExport, match=r"exported by HydraCore 0\.1\.0: verify it with that release or a later one"):
        verified(path)


def test_an_export_is_proven_as_it_comes_out_of_a_pipe_unless_it_is_parquet() -> None:
    """As where it is kept compressed: `zcat export.jsonl.gz | hydracore audit verify-export /dev/stdin`."""
    words = [sys.executable, "-m", "hydracore", "audit", "verify-export", "/dev/stdin", "--allow-unsigned"]
    lines, table = (
        subprocess.run(words, input=path.read_bytes(), capture_output=True, check=False, timeout=60)
        for path in (TENANT, TENANT_PARQUET)
    )

    assert (lines.returncode, table.returncode, table.stdout) == (0, 3, b"")
    assert b"0 findings in 19 events" in lines.stdout
    assert b"a Parquet file cannot be read from a pipe: give a regular file: '/dev/stdin'" in table.stderr


def test_without_a_key_nothing_is_taken_for_proven() -> None:
    report = verified(INSTANCE, public_key=None)

    assert report.findings == []
    assert any("Signatures by any key were accepted" in note for note in report.notes)


def test_verifying_imports_neither_a_database_nor_pyarrow() -> None:
    code = (
        "import sys, hydracore.audit.export_check\n"
        "assert not {'pyarrow', 'psycopg_pool', 'litestar'} & sys.modules.keys(), sorted(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
