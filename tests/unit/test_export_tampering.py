"""Every change to an export is found, and where it was made, even if the rest of the file was recomputed to match."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from events.digest import GENESIS
from events.ids import LANES
from events.seal import Head, make_seal
from hydracore.audit import export_records as r
from hydracore.audit.errors import NotAnExport
from hydracore.audit.export_check import Request, verify_export
from hydracore.audit.seal_file import SealFile
from hydracore.audit.verifying import Progress
from tests.exports import INSTANCE, KEY, PUBLIC_KEY, TENANT, Forger, export_findings, verify_file
from tests.sealed_log import LANE

OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def edited_payload(forger: Forger) -> None:
    forger.rename(19)


def edited_payload_with_its_digest(forger: Forger) -> None:
    forger.rename(16)
    forger.redo_event(16)


def edited_payload_up_to_the_link(forger: Forger) -> None:
    forger.rename(16)
    forger.redo_event(16)
    forger.redo_command(15)


def edited_actor(forger: Forger) -> None:
    forger.change(forger.at(r.CommandRecord, 19), actor="customer:eve")


def edited_time(forger: Forger) -> None:
    for kind, seq in ((r.CommandRecord, 19), (r.EventRecord, 19)):
        at = forger.at(kind, seq)
        forger.change(at, recorded_at=forger.records[at].recorded_at - timedelta(days=1))


def edited_time_of_the_event_alone(forger: Forger) -> None:
    at = forger.at(r.EventRecord, 13)
    forger.change(at, recorded_at=forger.records[at].recorded_at - timedelta(days=1))


def removed_event(forger: Forger) -> None:
    del forger.records[forger.at(r.EventRecord, 16)]


def removed_command(forger: Forger) -> None:
    at = forger.at(r.CommandRecord, 15)
    del forger.records[at : at + 4]


def hidden_command(forger: Forger) -> None:
    forger.hide(15)


def inserted_event(forger: Forger) -> None:
    at = forger.at(r.EventRecord, 17)
    forger.records.insert(at + 1, forger.records[at])


def swapped_events(forger: Forger) -> None:
    at = forger.at(r.EventRecord, 16)
    forger.records[at], forger.records[at + 1] = forger.records[at + 1], forger.records[at]


def swapped_payloads(forger: Forger) -> None:
    one, two = forger.at(r.EventRecord, 16), forger.at(r.EventRecord, 17)
    first, second = forger.records[one], forger.records[two]
    for at, like in ((one, second), (two, first)):
        forger.change(at, type=like.type, payload=like.payload, digest=like.digest)


def removed_last_command(forger: Forger) -> None:
    at = forger.at(r.CommandRecord, 19)
    del forger.records[at : at + 2]


def lowered_end_of_the_lane(forger: Forger) -> None:
    (at,) = (at for at, each in enumerate(forger.records) if isinstance(each, r.LaneEndRecord))
    forger.change(at, seq=18)


def removed_step(forger: Forger) -> None:
    (at, *_) = [at for at, each in enumerate(forger.records) if isinstance(each, r.StepsRecord)]
    del forger.records[at]


def recomputed_chain(forger: Forger) -> None:
    forger.rename(16)
    forger.redo_event(16)
    forger.redo_command(15)
    forger.redo_links()


def recomputed_chain_and_seal(forger: Forger) -> None:
    recomputed_chain(forger)
    forger.seal_anew(OTHER_KEY)


def removed_seals(forger: Forger) -> None:
    recomputed_chain(forger)
    at = max(at for at, each in enumerate(forger.records) if isinstance(each, r.SealRecord))
    del forger.records[at]


def other_tenants_command(forger: Forger) -> None:
    forger.change(0, tenant_id="evil")


def no_end(forger: Forger) -> None:
    forger.records.pop()


def no_end_of_the_lane(forger: Forger) -> None:
    del forger.records[-2:]


def later_end_of_the_lane(forger: Forger) -> None:
    forger.change(len(forger.records) - 2, seq=20)


def more_behind_the_end(forger: Forger) -> None:
    forger.records.append(forger.records[-2])


CASES: dict[Callable[[Forger], None], list[str]] = {
    edited_payload: ["event_edited 19"],
    edited_payload_with_its_digest: ["command_edited 15"],
    edited_payload_up_to_the_link: ["chain_broken 15"],
    edited_actor: ["command_edited 19"],
    edited_time: ["chain_broken 19"],
    edited_time_of_the_event_alone: ["event_edited 13"],
    removed_event: ["event_missing 16", "version_gap 17"],
    removed_command: ["chain_broken 15", "version_gap 19"],
    removed_last_command: ["rewritten 13"],
    hidden_command: ["version_gap 19"],
    inserted_event: ["event_extra 17"],
    swapped_events: ["event_missing 16", "version_gap 17", "event_extra 16"],
    swapped_payloads: ["event_edited 16", "event_edited 17", "command_edited 15"],
    removed_step: ["event_missing 14", "chain_broken 15"],
    recomputed_chain: ["rewritten 13"],
    recomputed_chain_and_seal: ["seal_flawed -", "not_sealed 13"],
    removed_seals: ["not_sealed 13"],
    other_tenants_command: ["foreign_command 13", "foreign_command 15", "foreign_command 19"],
    lowered_end_of_the_lane: ["event_extra 19"],
    no_end: ["file_truncated -"],
    no_end_of_the_lane: ["file_truncated 20", "file_truncated -"],
    later_end_of_the_lane: ["event_missing 20"],
    more_behind_the_end: ["file_edited -"],
}


@pytest.mark.parametrize("link", [bytes(32), b"\xff" * 32], ids=["the lowest link", "the highest link"])
def test_two_contradicting_seals_over_one_head_report_all_events_since_the_seal_before_them(
    link: bytes, tmp_path: Path
) -> None:
    forger = Forger(INSTANCE)
    at = max(at for at, each in enumerate(forger.records) if isinstance(each, r.SealRecord))
    last = forger.records[at].seal
    heads = [Head(19, link) if lane == LANE else last.head(lane) for lane in range(LANES)]
    other = make_seal(heads, previous=last, sealed_at=last.sealed_at, key=KEY)
    forger.records.insert(at + 1, r.SealRecord.of(other))

    places = [each.place for each in verify_file(forger.saved(tmp_path)).findings if each.kind == "rewritten"]

    assert places == ["lane 6, 13 to 19"]


def test_a_seal_from_before_the_exported_part_of_a_lane_is_no_finding(tmp_path: Path) -> None:
    # For example, because another lane of the tenant begins at it.
    forger = Forger(INSTANCE)
    at = min(at for at, each in enumerate(forger.records) if isinstance(each, r.SealRecord))
    heads = [Head(5, bytes(32)) if lane == LANE else Head(0, GENESIS) for lane in range(LANES)]
    earlier = make_seal(heads, previous=None, sealed_at=forger.records[at].seal.sealed_at, key=KEY)
    forger.records.insert(at, r.SealRecord.of(earlier))

    assert export_findings(forger.saved(tmp_path)) == []


@pytest.mark.parametrize("tamper", CASES, ids=lambda tamper: tamper.__name__)
def test_each_kind_of_tampering_is_found_where_it_was_done(tamper: Callable[[Forger], None], tmp_path: Path) -> None:
    forger = Forger(INSTANCE)

    tamper(forger)

    assert export_findings(forger.saved(tmp_path)) == CASES[tamper]


def test_a_duplicate_lane_is_reported_as_out_of_order(tmp_path: Path) -> None:
    forger = Forger(INSTANCE)
    begin, end = (at for at, each in enumerate(forger.records) if isinstance(each, (r.LaneRecord, r.LaneEndRecord)))
    forger.records[end + 1 : end + 1] = forger.records[begin : end + 1]

    first, *_ = verify_file(forger.saved(tmp_path)).findings

    assert (first.kind, first.what.partition(" (")[0], first.lane) == ("file_edited", "The lane is out of order", LANE)


def changes(forger: Forger) -> Iterator[tuple[str, list[Any]]]:
    """Every record removed, duplicated, and exchanged with the next; every field of every record changed."""
    records = forger.records
    for at, record in enumerate(records):
        yield f"without {at}", [*records[:at], *records[at + 1 :]]
        yield f"{at} twice", [*records[: at + 1], *records[at:]]
        yield f"{at} later", [*records[:at], *records[at + 1 : at + 2], record, *records[at + 2 :]]
        for name in record.__struct_fields__:
            forger.records = list(records)
            forger.change(at, **{name: other_than(getattr(record, name))})
            yield f"{name} of {at}", forger.records


def other_than(value: Any) -> Any:
    match value:
        case None:
            return b"x"
        case bytes():
            return value[:-1] + b"x"
        case str():
            return value[:-1] + "x"
        case UUID():
            return UUID(int=value.int ^ 1 << 100)
        case list():
            return [value[0] + 1, *value[1:]]
        case int():
            return value + 1
        case _:
            return value + timedelta(seconds=1)


def test_every_change_to_a_signed_export_is_found(tmp_path: Path) -> None:
    assert undetected(TENANT, tmp_path, fit=False) == []


def test_every_change_to_sealed_content_is_found_even_if_the_rest_is_recomputed(tmp_path: Path) -> None:
    # How the file was made, as the header says, and the values that are recomputed are not in the log.
    last = len(Forger(INSTANCE).records) - 1
    made_up = ("format_version", "made_by", "exported_at")
    computed = ("events", "commands", "streams", "digest", "public_key", "signature")
    assert set(undetected(INSTANCE, tmp_path, fit=True)) <= {
        *(f"{name} of 0" for name in made_up),
        *(f"{name} of {last}" for name in computed),
    }


def undetected(whole: Path, folder: Path, *, fit: bool) -> list[str]:
    """The changes that are not found; with `fit`, in a file whose rest was recomputed to match."""
    return [
        what
        for what, records in changes(Forger(whole))
        if records != Forger(whole).records and not refused(records, folder, fit=fit)
    ]


def refused(records: list[Any], folder: Path, *, fit: bool) -> bool:
    forger = Forger(INSTANCE)
    forger.records = records
    try:
        report = verify_file(forger.saved(folder, fit=fit), allow_unsigned=fit)
    except NotAnExport:
        return True
    return bool(report.findings)


def test_hiding_the_end_of_a_stream_is_found_in_a_signed_export_and_not_in_an_unsigned_one(tmp_path: Path) -> None:
    forger = Forger(INSTANCE)
    forger.hide(19)
    assert export_findings(forger.saved(tmp_path)) == []

    # The signature guards against that, so an export without one is reported unless that is allowed.
    forger = Forger(TENANT)
    forger.hide(19)
    (unsigned,) = verify_file(forger.saved(tmp_path), allow_unsigned=False).findings
    assert (unsigned.kind, unsigned.what.partition(":")[0]) == ("not_signed", "The export is not signed as a whole")
    forger = Forger(TENANT)
    forger.hide(19)
    edited = verify_file(forger.saved(tmp_path, fit=False), allow_unsigned=False)
    assert ([each.kind for each in edited.findings], edited.notes) == (["file_edited"], [])
    assert export_findings(forger.saved(tmp_path, key=OTHER_KEY)) == ["signature_wrong -"]
    assert export_findings(forger.saved(tmp_path, key=KEY)) == []


def test_an_export_that_is_signed_as_a_whole_is_verified_even_without_seals(tmp_path: Path) -> None:
    forger = Forger(TENANT)
    forger.records = [each for each in forger.records if not isinstance(each, r.SealRecord)]

    assert export_findings(forger.saved(tmp_path, key=KEY)) == []
    assert export_findings(forger.saved(tmp_path)) == ["not_sealed 1"]


def test_seals_of_an_export_are_compared_with_the_copy_outside_the_database(tmp_path: Path) -> None:
    copy = SealFile(tmp_path / "seals.jsonl")
    seals = [each.seal for each in Forger(INSTANCE).records if isinstance(each, r.SealRecord)]
    forger = Forger(INSTANCE)
    recomputed_chain(forger)
    forger.seal_anew(KEY)  # As a forger who has the key, too.
    path = forger.saved(tmp_path)
    assert export_findings(path) == []

    copy.append(seals)

    honest, forged = (
        verify_export(Request(path=each, public_key=PUBLIC_KEY, seals=copy, allow_unsigned=True), Progress())
        for each in (INSTANCE, path)
    )
    assert honest.findings == []
    assert [each.what for each in forged.findings] == ["Seal 3: it is not in the copy outside the database (record 4)"]
