"""`audit verify` with seals and their copy: tampering that only these show, and verifying only since the last seal."""

from __future__ import annotations

import asyncio
import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from events.ids import lane_of
from hydracore.audit.sealing import Sealer
from tests import lifecycle
from tests.sealed_log import LANE, SEAL_KEY, Forger, Log, run_audit
from tests.store_commands import create_instance, origin
from tests.verify_fixtures import FORGE, forge_consistently, forger, log, verify_findings

__all__ = ["forger", "log"]


@pytest.mark.parametrize(
    ("statement", "flaw"),
    [
        ("DELETE FROM seal WHERE number = 1", "Seal 2: all seals before it are missing"),
        ("UPDATE seal SET number = 3 WHERE number = 2", "Seal 3: seal 2 is missing before it"),
        ("UPDATE seal SET sealed_at = now() + interval '1 day' WHERE number = 2", "Seal 2: its signature is invalid"),
        (
            "UPDATE seal SET heads[7] = 11 WHERE number = 2",
            "Seal 2: its heads and links differ from those that were signed",
        ),
    ],
)
async def test_an_edited_or_removed_seal_is_found(log: Log, forger: Forger, statement: str, flaw: str) -> None:
    forger.do(statement)

    status, findings = verify_findings(log, "--no-replay", "--lane", "0")

    assert status == 1
    assert flaw in [finding["what"] for finding in findings]


async def test_a_rewritten_log_without_seals_passes_with_a_note_and_fails_with_the_copy_of_seals(
    log: Log, forger: Forger
) -> None:
    forge_consistently(forger)
    forger.do("DELETE FROM seal")

    result = run_audit(log, "verify", "--no-replay")
    status, findings = verify_findings(log, "--no-replay", "--seals", str(log.file.path))

    assert result.exit_code == 0
    assert "note: There are no seals" in result.stdout
    assert (status, [finding["kind"] for finding in findings]) == (1, ["seal_missing", "seal_missing", "rewritten"])


async def test_a_rewritten_log_that_was_sealed_anew_is_found_with_the_key_or_with_the_copy_of_seals(
    log: Log, forger: Forger
) -> None:
    forge_consistently(forger)
    forger.do("DELETE FROM seal")
    await Sealer(log.pool, key=bytes(32)).seal()

    any_key = run_audit(log, "verify", "--no-replay", HYDRACORE_SEAL_KEY="")
    status, findings = verify_findings(log, "--no-replay")
    with_copy = run_audit(log, "verify", "--no-replay", "--seals", str(log.file.path), HYDRACORE_SEAL_KEY="")

    assert any_key.exit_code == 0
    assert "Seals signed by any key were accepted" in any_key.stdout
    assert (status, [finding["what"] for finding in findings]) == (1, ["Seal 1: it was signed with another key"])
    assert with_copy.exit_code == 1
    assert "the copy outside the database has a different seal of this number" in with_copy.stdout
    assert "lane 6, 1 to 8: rewritten" in with_copy.stdout


async def test_since_seal_verifies_only_events_after_the_last_seal(log: Log, forger: Forger) -> None:
    await log.rename(0, "third")
    await log.rename(1, "third")
    forger.do(FORGE.format(7), "UPDATE event SET tenant_id = 'other' WHERE lane = 6 AND seq = 14")

    status, findings = verify_findings(log, "--since-seal")

    assert (status, [(finding["kind"], finding["seq"]) for finding in findings]) == (1, [("event_edited", 14)])


async def test_since_seal_verifies_each_lane_from_its_own_head_in_the_last_seal(log: Log) -> None:
    elsewhere = await create_instance(log.store, key="number 1")
    assert lane_of(elsewhere) != LANE
    await log.sealer.seal()
    await log.store.execute(elsewhere, lifecycle.plan(hostname="hc-other", vpn_ip="10.64.0.17"), origin("worker"))
    await log.rename(0, "third")

    assert verify_findings(log, "--since-seal") == (0, [])


async def test_since_seal_finds_a_lane_that_was_rewritten_before_the_last_seal(log: Log, forger: Forger) -> None:
    forge_consistently(forger)

    status, findings = verify_findings(log, "--since-seal", "--no-replay")

    (finding,) = findings
    assert (status, finding["kind"], finding["seq"], finding["last_seq"]) == (1, "rewritten", 1, 12)


async def test_since_seal_finds_that_a_tail_before_the_last_seal_was_cut_off(log: Log, forger: Forger) -> None:
    forger.do(
        "DELETE FROM event WHERE lane = 6 AND seq > 10",
        "DELETE FROM command WHERE lane = 6 AND first_seq > 10",
    )
    forger.redo_links()

    status, findings = verify_findings(log, "--since-seal", "--no-replay")

    (finding,) = findings
    assert (status, finding["kind"], finding["seq"], finding["last_seq"]) == (1, "tail_missing", 11, 12)


async def test_since_seal_finds_a_cut_off_tail_that_held_all_events_of_a_stream_after_the_seal(
    log: Log, forger: Forger
) -> None:
    await log.rename(0, "third")
    await log.rename(1, "third")
    forger.do("DELETE FROM event WHERE lane = 6 AND seq > 13", "DELETE FROM command WHERE lane = 6 AND first_seq > 13")

    status, findings = verify_findings(log, "--since-seal", "--no-replay")

    (finding,) = findings
    assert (status, finding["kind"], finding["seq"], finding["last_seq"]) == (1, "tail_missing", 14, 14)


async def test_an_auditor_verifies_seals_with_only_the_public_key(log: Log) -> None:
    public_key = Ed25519PrivateKey.from_private_bytes(SEAL_KEY).public_key().public_bytes_raw()
    given = {base64.urlsafe_b64encode(public_key).decode(): 0, base64.urlsafe_b64encode(bytes(32)).decode(): 1, "x": 2}

    for _ in range(2):  # The second has nothing to seal.
        assert f"public key {next(iter(given))}" in (await asyncio.to_thread(run_audit, log, "seal")).stdout
    for key, status in given.items():
        assert run_audit(log, "verify", "--public-key", key, HYDRACORE_SEAL_KEY="").exit_code == status
