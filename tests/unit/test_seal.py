"""Seals: what is signed cannot be changed, left out or put in another order without being found out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from events.errors import LogCorrupted
from events.ids import LANES
from events.merkle import root_of
from events.seal import Head, Seal, find_flaws, make_seal, require_well_formed
from hydracore.audit.seal_file import SealFile

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)

MALFORMED = "it is malformed"

#: Leaves and roots of Certificate Transparency's own tests of RFC 6962.
LEAVES = [
    *(bytes.fromhex(leaf) for leaf in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")),
    bytes.fromhex("606162636465666768696a6b6c6d6e6f"),
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def heads(seq: int) -> list[Head]:
    return [Head(seq + lane, sha256(b"%d/%d" % (lane, seq)).digest()) for lane in range(LANES)]


def chain(length: int) -> list[Seal]:
    seals: list[Seal] = []
    for number in range(length):
        previous = seals[-1] if seals else None
        sealed_at = NOON + timedelta(minutes=number)
        seals.append(make_seal(heads(10 * number), previous=previous, sealed_at=sealed_at, key=KEY))
    return seals


def flaws(seal: Seal, previous: Seal | None) -> list[str]:
    return list(find_flaws(seal, previous=previous, public_key=PUBLIC))


def test_a_former_key_is_accepted_until_a_newer_one_has_signed_a_seal() -> None:
    newer = Ed25519PrivateKey.from_private_bytes(bytes(32))
    keys = {"public_key": newer.public_key().public_bytes_raw(), "former_keys": (PUBLIC,)}
    seals = chain(1)
    for number, key in enumerate((KEY, newer, newer, KEY), start=1):
        seals.append(make_seal(heads(10 * number), previous=seals[-1], sealed_at=NOON + timedelta(hours=1), key=key))

    found = [list(find_flaws(now, previous=before, **keys)) for before, now in pairwise(seals)]

    assert found == [[], [], [], ["it was signed with a key that had been replaced by then"]]
    assert flaws(seals[2], seals[1]) == ["it was signed with another key"]
    listed_twice = {"public_key": PUBLIC, "former_keys": (PUBLIC,)}
    assert list(find_flaws(seals[1], previous=seals[0], **listed_twice)) == []


@pytest.mark.parametrize("size", range(1, len(LEAVES) + 1))
def test_merkle_roots_equal_those_in_the_tests_of_certificate_transparency(size: int) -> None:
    assert root_of(LEAVES[:size]).hex() == ROOTS[size - 1]


def test_seals_in_their_order_have_no_flaws() -> None:
    seals = chain(3)

    assert [flaws(seal, previous) for seal, previous in zip(seals, [None, *seals], strict=False)] == [[], [], []]
    assert [seal.number for seal in seals] == [1, 2, 3]
    assert seals[1].head(5) == heads(10)[5]


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        ({"number": 4}, "its signature is invalid"),
        ({"sealed_at": NOON + timedelta(days=1)}, "its signature is invalid"),
        ({"previous": bytes(32)}, "it names a different predecessor than the seal before it"),
        ({"root": bytes(32)}, "its signature is invalid"),
        ({"heads": [20 + lane for lane in range(LANES)]}, "its heads and links differ from those that were signed"),
        ({"links": bytes(32 * LANES)}, "its heads and links differ from those that were signed"),
        ({"heads": [10 + lane for lane in range(LANES - 1)]}, "it does not cover every lane"),
        ({"links": bytes(32)}, "it does not cover every lane"),
        ({"heads": [-1] * LANES}, "its heads and links differ from those that were signed"),
        ({"signature": bytes(64)}, "its signature is invalid"),
        ({"public_key": b"short"}, "its signature is invalid"),
        ({"number": 2**63}, MALFORMED),
        ({"sealed_at": NOON.replace(tzinfo=None)}, MALFORMED),
        ({"heads": [[lane] for lane in range(LANES)]}, MALFORMED),
        ({"heads": [2**63] * LANES}, MALFORMED),
        ({"heads": None}, MALFORMED),
        ({"links": "text"}, MALFORMED),
        ({"sealed_at": "2026-11-23T12:00:00Z"}, MALFORMED),
    ],
)
def test_an_edited_seal_is_reported_with_its_flaw(change: dict[str, Any], flaw: str) -> None:
    first, second = chain(2)

    assert flaw in flaws(replace(second, **change), first)


@pytest.mark.parametrize("change", [{"heads": [1] * (LANES - 1)}, {"links": bytes(32)}, {"heads": None}])
def test_require_well_formed_refuses_a_malformed_seal(change: dict[str, Any]) -> None:
    (seal,) = chain(1)

    assert require_well_formed(seal) is seal
    with pytest.raises(LogCorrupted, match="seal 1 is malformed"):
        require_well_formed(replace(seal, **change))


@pytest.mark.parametrize("change", [{"heads": [1] * (LANES - 1)}, {"sealed_at": NOON.replace(tzinfo=None)}])
def test_a_valid_seal_after_a_malformed_one_has_no_flaws(change: dict[str, Any]) -> None:
    first, second = chain(2)

    assert flaws(second, replace(first, **change)) == []


def test_a_removed_seal_is_reported_as_missing() -> None:
    seals = chain(3)

    assert flaws(seals[2], seals[0]) == ["seal 2 is missing before it"]


def test_a_seal_signed_with_another_key_is_accepted_only_if_no_key_is_given() -> None:
    forged = make_seal(heads(0), previous=None, sealed_at=NOON, key=Ed25519PrivateKey.generate())

    assert flaws(forged, None) == ["it was signed with another key"]
    assert list(find_flaws(forged, previous=None, public_key=None)) == []
    for key in (KEY, Ed25519PrivateKey.generate()):
        second = make_seal(heads(10), previous=forged, sealed_at=NOON, key=key)
        assert list(find_flaws(second, previous=forged, public_key=None)) == []


def test_a_seal_with_a_shorter_lane_or_an_earlier_time_than_its_predecessor_is_flawed() -> None:
    (first,) = chain(1)
    second = make_seal(heads(-1), previous=first, sealed_at=NOON - timedelta(seconds=1), key=KEY)

    assert flaws(second, first) == [
        "its time is earlier than that of the seal before it",
        "a lane is shorter in it than in the seal before it",
    ]


def test_seals_that_are_appended_to_the_file_are_read_back(tmp_path: Path) -> None:
    file = SealFile(tmp_path / "seals.jsonl")
    seals = chain(5)

    file.append(seals[:2])
    file.append(seals[2:])

    assert list(file.read()) == seals
    assert file.last_number() == 5


def test_a_missing_or_empty_file_has_no_seals(tmp_path: Path) -> None:
    file = SealFile(tmp_path / "seals.jsonl")
    assert file.last_number() == 0

    file.append([])

    assert (file.last_number(), list(file.read())) == (0, [])


@pytest.mark.parametrize("kept", [1, 100, -1])
def test_a_seal_whose_line_a_crash_left_incomplete_is_appended_again(tmp_path: Path, kept: int) -> None:
    file = SealFile(tmp_path / "seals.jsonl")
    seals = chain(3)
    file.append(seals[:1])
    whole = file.path.stat().st_size
    file.append(seals[1:2])
    content = file.path.read_bytes()
    file.path.write_bytes(content[: whole + kept] if kept > 0 else content[:kept])

    missing = file.last_number()
    file.append(seals[missing:])

    assert list(file.read()) == seals
