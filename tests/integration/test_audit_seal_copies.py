"""The copy of the seals outside the database, as users of `audit seal` and `audit verify` see it."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from events.ids import LANES
from events.seal import Head, Seal, make_seal
from hydracore.audit.seal_file import SealFile
from hydracore.audit.sealing import Sealer, utc_now
from hydracore.audit.verifying import Progress, Request, verify
from tests.sealed_log import LANE, SEAL_KEY, Log, SealedLogs, run_audit, update_projections


@pytest.fixture
async def log(sealed_logs: SealedLogs, tmp_path: Path) -> AsyncGenerator[Log]:
    async with sealed_logs.copy(tmp_path) as made:
        yield made


def public_key(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def forge(log: Log, *statements: str) -> None:
    """Execute the statements with the owner's rights."""
    with psycopg.connect(log.url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


async def test_events_after_a_seal_dated_in_the_future_are_sealed_as_new(log: Log) -> None:
    await log.rename(0, "third")
    await Sealer(log.pool, key=SEAL_KEY, clock=lambda: utc_now() + timedelta(hours=1)).seal()
    await log.rename(0, "fourth")

    sealed = await asyncio.to_thread(run_audit, log, "seal")
    again = await asyncio.to_thread(run_audit, log, "seal")

    assert (sealed.exit_code, sealed.stdout.partition(" at ")[0]) == (0, "seal 4 over 14 events")
    assert "no new events" in again.stdout


async def test_seals_missing_from_the_database_are_reported_and_the_copy_proves_the_loss(log: Log) -> None:
    copy = str(log.file.path)
    forge(log, "DELETE FROM seal WHERE number = 2")
    await log.rename(0, "third")

    sealed = await asyncio.to_thread(run_audit, log, "seal", HYDRACORE_SEAL_FILE=copy)
    moved = log.file.path.rename(log.file.path.with_name("evidence.jsonl"))
    again = await asyncio.to_thread(run_audit, log, "seal", HYDRACORE_SEAL_FILE=copy)

    assert (sealed.exit_code, len(sealed.stderr.splitlines())) == (1, 1)
    assert "Seal 2 in the database differs from that in" in sealed.stderr
    assert again.exit_code == 0
    assert run_audit(log, "verify", HYDRACORE_SEAL_FILE=copy).exit_code == 0
    lost = run_audit(log, "verify", "--seals", str(moved))
    assert (lost.exit_code, "Seal 2: the copy outside the database has a different seal" in lost.stdout) == (1, True)


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE seal SET heads = (SELECT array_agg(ARRAY[head]) FROM unnest(heads) head)",
        "UPDATE seal SET sealed_at = 'infinity'",
    ],
)
async def test_a_malformed_seal_is_not_used_as_a_base(log: Log, tmp_path: Path, forgery: str) -> None:
    forge(log, forgery)
    words = ("export", "--tenant", "acme", "--output", str(tmp_path / "export"))

    for result in (
        await asyncio.to_thread(run_audit, log, "seal"),
        run_audit(log, *words),
        run_audit(log, *words, "--sealed"),
    ):
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert "seal 2 is malformed" in result.stderr


async def test_a_copy_that_was_not_compared_is_always_reported(log: Log, tmp_path: Path) -> None:
    missing = str(tmp_path / "typo.jsonl")

    without = run_audit(log, "verify", "--lane", "0")
    mistaken = run_audit(log, "verify", "--lane", "0", HYDRACORE_SEAL_FILE=missing)
    given = run_audit(log, "verify", "--lane", "0", "--seals", str(log.file.path), HYDRACORE_SEAL_FILE=missing)
    forge(log, "DELETE FROM seal")
    nothing_yet = run_audit(log, "verify", "--lane", "0", HYDRACORE_SEAL_FILE=missing)

    assert (without.exit_code, "note: No copy of the seals was compared" in without.stdout) == (0, True)
    assert (mistaken.exit_code, mistaken.stdout, len(mistaken.stderr.splitlines())) == (3, "", 1)
    assert f"does not exist: {missing}" in mistaken.stderr
    assert (given.exit_code, "note:" in given.stdout) == (0, False)
    assert (nothing_yet.exit_code, "note: No copy" in nothing_yet.stdout) == (0, True)


async def test_seals_of_a_replaced_key_stay_valid_if_it_is_given_as_a_former_key(log: Log) -> None:
    old, new = (urlsafe_b64encode(public_key(seed)).decode() for seed in (SEAL_KEY, bytes(32)))
    await log.rename(0, "third")
    unset = {"HYDRACORE_SEAL_KEY": urlsafe_b64encode(bytes(32)).decode(), "HYDRACORE_SEAL_FILE": str(log.file.path)}
    after = {**unset, "HYDRACORE_SEAL_KEYS_FORMER": old}

    unknown = await asyncio.to_thread(lambda: run_audit(log, "seal", **unset))
    sealed = await asyncio.to_thread(lambda: run_audit(log, "seal", **after))
    verified = run_audit(log, "verify", "--lane", "0", **after)
    by_auditor = [
        run_audit(log, "verify", "--lane", "0", *words, HYDRACORE_SEAL_KEY="")
        for words in (("--public-key", old, "--public-key", new), ("--public-key", new, "--public-key", old))
    ]

    assert (unknown.exit_code, "is invalid: it was signed with another key" in unknown.stderr) == (1, True)
    assert (sealed.exit_code, sealed.stdout.partition(" over ")[0]) == (0, "seal 3")
    assert [result.exit_code for result in (verified, *by_auditor)] == [0, 0, 1]
    assert "Seal 3: it was signed with a key that had been replaced by then" in by_auditor[1].stdout


async def test_a_copy_without_any_seal_is_refused_if_the_database_has_seals(log: Log) -> None:
    copy = log.file.path.with_name("empty.jsonl")

    for content in (b"", b"not a seal\n"):
        copy.write_bytes(content)
        for result in (
            run_audit(log, "verify", "--lane", "0", "--seals", str(copy)),
            run_audit(log, "verify", "--lane", "0", HYDRACORE_SEAL_FILE=str(copy)),
        ):
            assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (3, "", 1)
            assert f"The database has seals, but {copy}, the file with their copy, has none" in result.stderr
    forge(log, "DELETE FROM seal")
    nothing_yet = run_audit(log, "verify", "--lane", "0", "--seals", str(copy))

    assert nothing_yet.exit_code == 0


async def test_a_copy_that_ends_long_before_the_last_seal_is_noted(log: Log) -> None:
    copy = log.file.path.with_name("old.jsonl")
    copy.write_bytes(log.file.path.read_bytes().splitlines(keepends=True)[0])
    words = ("verify", "--lane", "0", "--seals", str(copy))
    await log.rename(0, "third")
    await log.sealer.seal()
    a_moment_old = await asyncio.to_thread(run_audit, log, *words)
    await log.rename(0, "fourth")
    await log.sealer.seal()

    old = await asyncio.to_thread(run_audit, log, *words)

    assert (a_moment_old.exit_code, "note:" in a_moment_old.stdout) == (0, False)
    assert old.exit_code == 0
    assert "note: The copy ends with seal 1, but the database with seal 4: the seals in between" in old.stdout


async def test_strict_verification_requires_every_seal_in_the_copy_but_those_just_being_copied(log: Log) -> None:
    copy = log.file.path.with_name("old.jsonl")
    first, last = log.file.path.read_bytes().splitlines(keepends=True)
    copy.write_bytes(first + last[: len(last) // 2] + b"\n")
    await update_projections(log)
    words = ("verify", "--strict", "--seals", str(copy))

    # The seals may be some minutes old: all tests copy the same log.
    young = await asyncio.to_thread(lambda: run_audit(log, *words, HYDRACORE_SEAL_INTERVAL_S="3600"))
    old = await asyncio.to_thread(lambda: run_audit(log, *words, HYDRACORE_SEAL_INTERVAL_S="0.001"))

    assert (young.exit_code, f"1 line of {copy} could not be read" in young.stdout) == (0, True)
    assert old.exit_code == 1
    assert "the log: not_proven: The copy ends with seal 1, but the database with seal 2" in old.stdout


async def test_unreadable_lines_at_the_end_of_a_copy_hide_no_missing_seal(log: Log) -> None:
    with log.file.path.open("ab") as file:
        file.write(b"x" * 300_000 + b"\n" + b"[" * 60_000 + b"\n")
    forge(log, "DELETE FROM seal")

    result = run_audit(log, "verify", "--lane", "0", "--seals", str(log.file.path))

    assert result.exit_code == 1
    assert [line.partition(": it is")[0] for line in result.stdout.splitlines()[:2]] == [
        "the log: seal_missing: Seal 1",
        "the log: seal_missing: Seal 2",
    ]
    assert f"note: 2 lines of {log.file.path} could not be read" in result.stdout


async def test_repeated_older_seals_at_the_end_of_the_copy_hide_no_newer_one(log: Log) -> None:
    copy = log.file.path
    first, last = copy.read_bytes().splitlines(keepends=True)
    copy.write_bytes(first + last + first * (300_000 // len(first)))
    forge(log, "DELETE FROM seal WHERE number = 2")

    result = run_audit(log, "verify", "--lane", "0", "--seals", str(copy))

    assert result.exit_code == 1
    assert "the log: seal_missing: Seal 2: it is in the copy" in result.stdout


class GrowingFile(SealFile):
    """Gets another seal between the look at its end and its reading."""

    def read(self, *, upto: int | None = None) -> Iterator[Seal]:
        *_, last = super().read()
        self.append([msgspec.structs.replace(last, number=last.number + 1)])
        return super().read(upto=upto)


async def test_a_seal_that_is_copied_during_a_verification_is_no_finding(log: Log) -> None:
    report = verify(Request(conninfo=log.url, lanes=(0,), seals=GrowingFile(log.file.path)), Progress())

    assert (report.findings, report.seals) == ([], 2)


@pytest.mark.parametrize("lines_between", [0, 300_000], ids=["at the end", "long before the end"])
async def test_a_damaged_seal_number_in_a_copy_hides_no_missing_seal_behind_it(log: Log, lines_between: int) -> None:
    copy = log.file.path
    first, last = copy.read_bytes().splitlines(keepends=True)
    copy.write_bytes(first.replace(b'"number":1,', b'"number":99,') + b"\n" * lines_between + last)
    forge(log, "DELETE FROM seal WHERE number = 2")

    result = run_audit(log, "verify", "--lane", "0", "--seals", str(copy))

    assert result.exit_code == 1
    assert "the log: seal_missing: Seal 2: it is in the copy" in result.stdout
    assert "the log: copy_flawed: Seal 1: it is missing or out of order in the copy" in result.stdout
    assert "the log: copy_flawed: Seal 99: its signature is invalid" in result.stdout


@pytest.mark.parametrize("link", [bytes(32), b"\xff" * 32], ids=["the lowest link", "the highest link"])
@pytest.mark.parametrize("is_beside", [False, True], ids=["in its place", "beside the database's own"])
async def test_if_two_seals_of_the_same_end_differ_the_events_since_the_previous_seal_are_named(
    log: Log, link: bytes, *, is_beside: bool
) -> None:
    # As after a restore: the events that have been written since end at the same number as those it has lost.
    first, second = log.file.read()
    heads = [Head(12, link) if lane == LANE else second.head(lane) for lane in range(LANES)]
    lost = make_seal(
        heads, previous=first, sealed_at=second.sealed_at, key=Ed25519PrivateKey.from_private_bytes(SEAL_KEY)
    )
    copy = SealFile(log.file.path.with_name("evidence.jsonl"))
    copy.append([first, second, lost] if is_beside else [first, lost])

    verified = await asyncio.to_thread(run_audit, log, "verify", "--no-replay", "--seals", str(copy.path))

    assert verified.exit_code == 1
    assert "lane 6, 9 to 12: rewritten: Seal 2 does not match these events" in verified.stdout
