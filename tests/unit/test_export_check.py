"""An export is verified with nothing but the public key, and a file that is not a complete export is reported or refused.

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
from tests.exports import INSTANCE, TENANT, TENANT_PARQUET, Forger, export_findings, verify_file


@pytest.mark.parametrize("path", [TENANT, TENANT_PARQUET], ids=lambda path: path.suffix)
def test_an_export_of_the_first_format_version_is_read_and_verified(path: Path) -> None:
    report = verify_file(path)

    assert (report.findings, report.notes, report.signed) == ([], [], True)
    assert (report.tenant_id, report.instance_id) == ("acme", None)
    assert (report.events, report.commands, report.streams, report.steps, report.seals) == (19, 15, 4, 0, 1)


def test_an_export_of_one_instance_is_verified_with_only_chain_steps_of_the_others() -> None:
    report = verify_file(INSTANCE)

    assert (report.findings, report.signed) == ([], False)
    assert report.instance_id == UUID("bd7c9d8d-101f-5494-b440-91d05382de06")
    assert (report.events, report.commands, report.streams, report.steps, report.seals) == (5, 3, 1, 2, 2)
    (note,) = report.notes
    assert "not signed" in note


def test_without_a_public_key_an_unsigned_export_is_a_note_and_no_finding() -> None:
    report = verify_file(INSTANCE, public_key=None, allow_unsigned=False)

    assert report.findings == []
    assert any("not signed" in note for note in report.notes)


@pytest.mark.parametrize(
    ("path", "counted"),
    [
        (INSTANCE, "3 commands of instance bd7c9d8d-101f-5494-b440-91d05382de06, "),
        (TENANT, "15 commands of 4 instances of tenant acme, "),
    ],
)
def test_the_result_names_the_tenant_or_instance_of_the_export(path: Path, counted: str) -> None:
    done = CliRunner().invoke(main, ["audit", "verify-export", str(path), "--allow-unsigned"])

    assert counted in done.stdout


def test_jsonl_and_parquet_exports_hold_exactly_the_same_records() -> None:
    lines, rows = ([placed.record for placed in read_records(path)] for path in (TENANT, TENANT_PARQUET))

    assert len(lines) == len(rows) == 39
    # All but the first and the last, with the time of the export and the digest over all.
    assert lines[1:-1] == rows[1:-1]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_records_that_are_read_and_written_again_make_a_valid_export(form: Any, tmp_path: Path) -> None:
    fingerprint = r.Fingerprint()
    with open_writer(tmp_path / "again", form) as write:
        for _, record in read_records(TENANT):
            write(record, fingerprint.add(record))

    assert (verify_file(tmp_path / "again").findings, verify_file(tmp_path / "again").signed) == ([], True)


@pytest.mark.parametrize("path", [TENANT, TENANT_PARQUET], ids=lambda path: path.suffix)
def test_a_truncated_export_is_a_finding(path: Path, tmp_path: Path) -> None:
    whole, cut = path.read_bytes(), tmp_path / "cut"
    for size in (len(whole) - 2, len(whole) - 100, len(whole) // 2, 2_000):
        cut.write_bytes(whole[:size])

        (finding, *_) = verify_file(cut).findings

        assert finding.kind in {"record_unreadable", "file_truncated"}


def test_an_export_without_its_final_line_break_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "export.jsonl"
    path.write_bytes(TENANT.read_bytes().removesuffix(b"\n"))

    report = verify_file(path)

    assert (report.findings, report.signed) == ([], True)


def test_an_export_without_its_header_is_reported_as_edited(tmp_path: Path) -> None:
    forger = Forger(TENANT)
    del forger.records[0]

    assert export_findings(forger.saved(tmp_path, fit=False)) == ["file_edited -"]


def test_a_file_that_is_no_export_or_of_a_later_format_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"\n", b"{}\n", b"\0" * 1000, INSTANCE.read_bytes().replace(b"hydracore-export", b"x")):
        path.write_bytes(content)
        with pytest.raises(NotAnExport, match="is not a HydraCore export"):
            verify_file(path)
    path.write_bytes(INSTANCE.read_bytes().replace(b'"format_version":1,', b'"format_version":2,"new":1,'))

    with pytest.raises(NotAnExport, match=r"exported by HydraCore 0\.1\.0: verify it with that release or a later one"):
        verify_file(path)


def test_an_export_is_verified_from_a_pipe_unless_it_is_parquet() -> None:
    """For compressed exports: `zcat export.jsonl.gz | hydracore audit verify-export /dev/stdin`."""
    words = [sys.executable, "-m", "hydracore", "audit", "verify-export", "/dev/stdin", "--allow-unsigned"]
    lines, table = (
        subprocess.run(words, input=path.read_bytes(), capture_output=True, check=False, timeout=60)
        for path in (TENANT, TENANT_PARQUET)
    )

    assert (lines.returncode, table.returncode, table.stdout) == (0, 3, b"")
    assert b"0 findings in 19 events" in lines.stdout
    assert b"a Parquet file cannot be read from a pipe: give a regular file: '/dev/stdin'" in table.stderr


def test_without_a_public_key_a_note_says_that_signatures_by_any_key_were_accepted() -> None:
    report = verify_file(INSTANCE, public_key=None)

    assert report.findings == []
    assert any("Signatures by any key were accepted" in note for note in report.notes)


def test_verifying_an_export_imports_neither_a_database_pool_nor_pyarrow() -> None:
    code = (
        "import sys, hydracore.audit.export_check\n"
        "assert not {'pyarrow', 'psycopg_pool', 'litestar'} & sys.modules.keys(), sorted(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
