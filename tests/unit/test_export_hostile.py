"""Exports come from strangers: hostile content is a finding or refused, at a cost in proportion to the size of the file."""

from __future__ import annotations

import tracemalloc
from base64 import b64encode
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from events.ids import SEQ_MAX
from hydracore.audit import export_records as r
from hydracore.audit.errors import NotAnExport
from hydracore.cli import main
from tests.exports import INSTANCE, TENANT, TENANT_PARQUET, Forger, export_findings, verify_file

#: A time without a time zone.
SOME_NOON = datetime(2026, 11, 23, 12)  # noqa: DTZ001


def first(forger: Forger, kind: type[r.Record]) -> int:
    return next(at for at, each in enumerate(forger.records) if isinstance(each, kind))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (r.SealRecord, {"number": SEQ_MAX + 1}),
        (r.SealRecord, {"heads": [SEQ_MAX + 1] * 64}),
        (r.SealRecord, {"sealed_at": SOME_NOON}),
        (r.LaneRecord, {"lane": 64}),
        (r.LaneRecord, {"lane": -1}),
        (r.LaneRecord, {"after": -1}),
        (r.CommandRecord, {"recorded_at": SOME_NOON}),
        (r.CommandRecord, {"first_seq": SEQ_MAX + 1}),
        (r.CommandRecord, {"event_count": 0}),
        (r.EventRecord, {"recorded_at": SOME_NOON}),
        (r.EventRecord, {"version": 2**64}),
        (r.StepsRecord, {"count": -1}),
        (r.StepsRecord, {"steps": bytes(48 * (r.STEPS_MAX + 1))}),
        (r.LaneEndRecord, {"seq": 2**70}),
    ],
)
def test_a_record_with_a_value_that_the_log_never_writes_is_unreadable(
    kind: type[r.Record], fields: dict[str, Any], tmp_path: Path
) -> None:
    forger = Forger(INSTANCE)
    forger.change(first(forger, kind), **fields)

    assert export_findings(forger.saved(tmp_path))[-1] == "record_unreadable -"


def test_a_record_with_a_duplicate_field_is_unreadable(tmp_path: Path) -> None:
    """Other programs may read the first of the two, which is not verified."""
    path = tmp_path / "forged.jsonl"
    path.write_bytes(TENANT.read_bytes().replace(b'"payload":', b'"payload":"{}","payload":', 1))

    (finding,) = verify_file(path).findings

    assert (finding.kind, "not encoded as an export encodes it" in finding.what) == ("record_unreadable", True)


def test_a_parquet_file_with_a_duplicate_column_is_unreadable(tmp_path: Path) -> None:
    table, path = pq.read_table(TENANT_PARQUET), tmp_path / "forged.parquet"
    payloads = pa.array(["{}"] * table.num_rows)
    pq.write_table(table.add_column(1, "payload", payloads), path)

    (finding,) = verify_file(path).findings

    assert (finding.kind, "payload appears more than once" in finding.what) == ("record_unreadable", True)


def in_upper_case(values: list[Any]) -> list[Any]:
    return [value and value.upper() for value in values]


def in_base64(values: list[Any]) -> list[Any]:
    return [value and b64encode(value).decode() for value in values]


def as_iso_texts(values: list[Any]) -> list[Any]:
    return [value and value.isoformat() for value in values]


def in_the_header(values: list[Any]) -> list[Any]:
    return ["{}", *values[1:]]


def with_null_for_zero(values: list[Any]) -> list[Any]:
    return [value or None for value in values]


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("stream_id", in_upper_case),
        ("digest", in_base64),
        ("recorded_at", as_iso_texts),
        ("payload", in_the_header),
        ("number", with_null_for_zero),
    ],
)
def test_a_parquet_value_that_is_not_encoded_as_an_export_encodes_it_is_unreadable(
    name: str, edit: Callable[[list[Any]], list[Any]], tmp_path: Path
) -> None:
    """What we could decode to the same value may be another one to other programs."""
    table, path = pq.read_table(TENANT_PARQUET), tmp_path / "forged.parquet"
    at, values = table.schema.names.index(name), edit(table.column(name).to_pylist())
    pq.write_table(table.set_column(at, name, pa.array(values)), path)

    (finding,) = verify_file(path).findings

    assert (finding.kind, "not encoded as an export encodes it" in finding.what) == ("record_unreadable", True)


def test_a_parquet_file_rewritten_with_other_storage_options_is_the_same_export(tmp_path: Path) -> None:
    table, path = pq.read_table(TENANT_PARQUET), tmp_path / "again.parquet"
    pq.write_table(table, path, compression="gzip", row_group_size=7, use_dictionary=False, data_page_version="2.0")

    assert (verify_file(path).findings, verify_file(path).signed) == ([], True)


@pytest.mark.parametrize("fields", [{"first_seq": SEQ_MAX}, {"event_count": SEQ_MAX}])
def test_the_largest_possible_sequence_number_or_event_count_is_a_finding(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    forger = Forger(INSTANCE)
    forger.change(first(forger, r.CommandRecord), **fields)

    assert "chain_broken" in str(export_findings(forger.saved(tmp_path))) or "event_missing" in str(
        export_findings(forger.saved(tmp_path))
    )


def test_deeply_nested_json_is_refused_as_a_header_and_unreadable_as_a_record(tmp_path: Path) -> None:
    header, *others = INSTANCE.read_bytes().splitlines(keepends=True)
    brackets = b'{"kind":' + b"[" * 200_000 + b"\n"
    path = tmp_path / "brackets.jsonl"

    path.write_bytes(brackets + b"".join(others))
    with pytest.raises(NotAnExport):
        verify_file(path)
    path.write_bytes(header + brackets + b"".join(others))
    assert export_findings(path) == ["record_unreadable -"]


def test_a_claim_of_millions_of_missing_events_costs_little_memory(tmp_path: Path) -> None:
    forger = Forger(INSTANCE)
    at = first(forger, r.CommandRecord)
    forger.change(at, event_count=30_000_000)
    forger.change(at + 1, seq=20_000_000)
    path = forger.saved(tmp_path)

    tracemalloc.start()
    findings = verify_file(path).findings
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    missing = [(each.seq, each.last_seq) for each in findings if each.kind == "event_missing"]
    assert missing[:2] == [(13, 19_999_999), (20_000_001, 30_000_012)]
    assert peak_bytes < 10_000_000


def invalid_utf_8(column: Any) -> Any:
    return pa.array([b"\xff"] * len(column), pa.binary()).view(pa.string())


def out_of_range_time(column: Any) -> Any:
    return pa.array([2**62] * len(column), pa.int64()).view(column.type)


@pytest.mark.parametrize(("name", "edit"), [("tenant_id", invalid_utf_8), ("recorded_at", out_of_range_time)])
def test_a_parquet_file_with_invalid_utf_8_or_an_out_of_range_time_is_unreadable(
    name: str, edit: Callable[[Any], Any], tmp_path: Path
) -> None:
    table: Any = pq.read_table(TENANT_PARQUET)
    column = table.column(name).combine_chunks()
    path = tmp_path / "forged.parquet"
    forged = table.set_column(table.schema.get_field_index(name), name, edit(column))
    pq.write_table(forged, path)

    assert export_findings(path)[-1] == "record_unreadable -"


LIE = "x\x1b[2J\x1b[H0 findings in 41 events of tenant acme, 63 steps of others in 12 lanes\r\n$ \x1b]0;"


def shown(path: Path) -> list[str]:
    """The lines that verifying the file prints on a terminal."""
    words = ["audit", "verify-export", "--allow-unsigned", str(path)]
    # `color`: escape sequences are left in, as they are on a terminal.
    return CliRunner().invoke(main, words, color=True).output.removesuffix("\n").split("\n")


def test_a_tenant_id_that_imitates_a_successful_result_is_printed_escaped(tmp_path: Path) -> None:
    forger = Forger(INSTANCE)
    forger.change(0, tenant_id=LIE, instance_id=None)

    *findings, end = shown(forger.saved(tmp_path))

    assert all(line.isprintable() for line in (*findings, end))
    assert any("foreign_command" in line for line in findings)
    assert end.startswith(f"{len([each for each in findings if not each.startswith('note: ')])} findings in ")
    assert r'of tenant "x\u001b[2J\u001b[H0 findings in 41 events of tenant acme' in end


def test_a_very_long_tenant_id_is_printed_shortened(tmp_path: Path) -> None:
    forger = Forger(INSTANCE)
    forger.change(0, tenant_id=" " * 100_000, instance_id=None)

    assert len(shown(forger.saved(tmp_path))[-1]) < 500


@pytest.mark.parametrize("kind", [LIE, "x" * 100_000], ids=["lie", "long"])
def test_an_unreadable_record_is_reported_in_short_lines_of_printable_characters(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "forged.jsonl"
    header, *_ = INSTANCE.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + msgspec.json.encode({"kind": kind}) + b"\n")

    finding, *_, end = lines = shown(path)

    assert "record_unreadable" in finding
    assert end.startswith("1 finding in 0 events ")
    assert all(line.isprintable() and len(line) < 5_000 for line in lines)
