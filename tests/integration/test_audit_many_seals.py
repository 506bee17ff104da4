"""However many seals there are, and wherever a page of them ends, tampering between two of the kept seals is found."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from hydracore.audit import seal_check, seal_sample
from hydracore.audit.seal_check import check_seals, stored_seals
from tests.sealed_log import Forger, sealed_log
from tests.services import Services
from tests.tampering import forger, lane_findings, module_database

__all__ = ["forger"]

#: The events of the lane: 12, and those that have a seal each.
EVENTS = 22


@pytest.fixture(scope="module")
def url(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    async def make(url: str) -> None:
        async with sealed_log(url, tmp_path_factory.mktemp("seals")) as log:
            for number in range(EVENTS - 12):
                await log.rename(number % 3, f"sealed {number}")
                await log.sealer.seal()

    with module_database(services, "many_seals", make) as url:
        yield url


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_sample, "SAMPLE_MAX", 3)
    monkeypatch.setattr(seal_check, "SEALS_MAX", 2)


FORGE = "UPDATE command SET actor = 'customer:eve' WHERE lane = 6 AND first_seq = {}"


def rewrite(forger: Forger, seq: int) -> None:
    forger.do(FORGE.format(seq))
    forger.redo_command(seq)
    forger.redo_links()


CUT_OFF = [
    "DELETE FROM event WHERE lane = 6 AND seq > {0}",
    "DELETE FROM command WHERE lane = 6 AND first_seq > {0}",
    (
        "UPDATE stream s SET version = e.version"
        "  FROM (SELECT stream_id, max(version) AS version FROM event WHERE lane = 6 GROUP BY stream_id) e"
        " WHERE s.lane = 6 AND s.stream_id = e.stream_id"
    ),
]


def test_an_unchanged_log_has_no_findings(forger: Forger) -> None:
    assert len(list(stored_seals(forger.connection))) == EVENTS - 10
    assert lane_findings(forger) == []


@pytest.mark.parametrize("seq", [1, 9, *range(14, EVENTS + 1)])
def test_a_rewrite_between_two_kept_seals_is_found(forger: Forger, seq: int) -> None:
    rewrite(forger, seq)

    (found,) = lane_findings(forger)

    assert found.kind == "rewritten"
    assert found.seq is not None
    assert found.last_seq is not None
    assert found.seq <= seq <= found.last_seq


@pytest.mark.parametrize("last", range(12, EVENTS))
def test_a_truncation_between_two_kept_seals_is_found_with_its_range(forger: Forger, last: int) -> None:
    forger.do(*(statement.format(last) for statement in CUT_OFF))

    (found,) = lane_findings(forger)

    assert (found.kind, found.seq, found.last_seq) == ("tail_missing", last + 1, EVENTS)


@pytest.mark.parametrize("number", range(2, 6))
def test_tampering_with_seals_is_found_wherever_a_page_ends(forger: Forger, number: int) -> None:
    def flawed(statement: str) -> list[int]:
        forger.do("SAVEPOINT before", statement.format(number))
        checked = check_seals(stored_seals(forger.connection), (), public_key=None)
        forger.do("ROLLBACK TO before")
        return [int(finding.what.removeprefix("Seal ").partition(":")[0]) for finding in checked.findings]

    forger.do("ALTER TABLE seal DROP CONSTRAINT seal_pkey")

    assert flawed("DELETE FROM seal WHERE number = {}") == [number + 1]
    assert flawed("UPDATE seal SET sealed_at = 'infinity' WHERE number = {}") == [number]
    assert flawed("INSERT INTO seal SELECT * FROM seal WHERE number = {}") == [number]
