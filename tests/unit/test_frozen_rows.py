"""A version of a projection gives the same rows for the same history for ever: rows that one release stores, the next one gives too."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import msgspec
import pytest

from events.failures import TEXTS
from events.ids import lane_of
from events.types import AnyEvent
from projections.definition import Followed, Inline
from projections.fact import Fact
from projections.followed import followed_projections
from projections.inline import inline_projections
from projections.provision_log_1 import TEXTS as TEXTS_1
from projections.versions import Versions
from tests import frozen_corpus, lifecycle

ADA = lifecycle.instance_id()
START = datetime(2026, 9, 21, 22, tzinfo=UTC)

#: By name and version: the digest of all rows of the frozen histories. Where one differs, a replay no longer gives
#: the rows that are stored: raise the version, keep the former one beside it (docs/projections.md), and add a line.
FROZEN: dict[tuple[str, int], str] = {
    ("usage_daily", 1): "7caacc26c8053ef8fd0664717d078fe360205bdb258fd8ccef23856a7c38ae37",
    ("fleet", 1): "0c19295714745d197abf5ce58d47b81e4a44c4ab25723a4192efbe6651553a39",
    ("activity", 1): "c0a1ebefd09f0b278064026ae057ce4188217dcdea576cbf68526bfbf6acadd1",
    ("reservation", 1): "96c9a800b70e20626090b65adc0269603ccedc7e901979c4a4914455c42e6672",
    ("instance", 1): "bafc8dd028899b7a9a417f2b4d6647467ae95a5a781f41e865489004a4c9dded",
    ("provision_log", 1): "1f067eeedb05a1805b54a3dfe3fcf76374d996377c716d28d6afd1c37e058ddb",
    ("provision_log", 2): "c798cc33d27e12302a50f6913624965eff7ba538464c7feb5eee7d0ac1a008be",
}

#: The texts of `provision_log` for the codes of failures, by version. A code that no log has yet may be added, with a new digest here; the
#: text of a code that is in a log, or that it has none, is part of the projection's version.
FROZEN_TEXTS = {
    1: (TEXTS_1, "b7443a1beeb1cace7a30355584534c9a7b2a59af22828ae50915c6dcd3109d24"),
    2: (TEXTS, "207ff1121052262582e64b5feb3ecefb6adefec767b103013e5732fd59cf814f"),
}


def projections() -> list[Inline | Followed]:
    """In each version that this release can write."""
    found = list[Inline | Followed](followed_projections())
    for projection in inline_projections():
        found += projection.known.values() if isinstance(projection, Versions) else [projection]
    return found


def rows(projection: Inline | Followed) -> Iterator[bytes]:
    """The rows of each history, and of each with one more event of each type; where that raises an error, its name."""
    for history in frozen_corpus.histories():
        yield rows_of(projection, history)
        for event in frozen_corpus.events():
            try:
                yield rows_of(projection, [*history, event])
            except Exception as error:  # noqa: BLE001 - an event that makes no sense there raises one, and that is a result too
                yield type(error).__name__.encode()


def rows_of(projection: Inline | Followed, events: list[AnyEvent]) -> bytes:
    if isinstance(projection, Inline):
        fold = projection.begin(ADA, lane=lane_of(ADA))
        fold.feed(events)
        return encoded(list(fold.rows()))
    sums = projection.begin()
    facts = [fact_of(number, event) for number, event in enumerate(events)]
    sums.feed([fact for fact in facts if projection.types is None or fact.type in projection.types])
    return encoded({table: list(of_table) for table, of_table in sums.rows().items()})


def fact_of(number: int, event: AnyEvent) -> Fact:
    return Fact(
        lane=lane_of(ADA),
        seq=number + 1,
        stream_id=ADA,
        tenant_id="acme",
        recorded_at=START + timedelta(minutes=17 * number),
        actor="worker" if number % 3 else "customer:ada",
        command="Some",
        first=number % 2 == 0,
        event_or_type=event,
    )


def encoded(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=repr, order="deterministic")


@pytest.mark.parametrize("projection", projections(), ids=lambda projection: f"{projection.name}-{projection.version}")
def test_each_version_of_a_projection_still_gives_the_frozen_rows(projection: Inline | Followed) -> None:
    assert sha256(b"\n".join(rows(projection))).hexdigest() == FROZEN[projection.name, projection.version]


@pytest.mark.parametrize(("texts", "digest"), FROZEN_TEXTS.values(), ids=FROZEN_TEXTS)
def test_the_texts_of_failures_in_each_version_of_the_provision_log_never_change(
    texts: dict[str, str], digest: str
) -> None:
    assert sha256(encoded(texts)).hexdigest() == digest
