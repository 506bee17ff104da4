"""A log that was rewritten, with digests and links made to fit again: what is found without seals, and with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sealed_log import Forger
from tests.tampering import (
    COMMAND,
    DROP_COMMAND,
    DROP_EVENT,
    EVENT,
    FORGE,
    Place,
    forger,
    lane_findings,
    places,
    sealed_url_fixture,
)

__all__ = ["forger", "sealed_url_fixture"]

#: The findings for a version that was left out, and for a command that was made to begin one event too late.
GAP: set[Place] = {("version_gap", 12), ("tail_missing", 13)}
LATER: set[Place] = {("event_extra", 4), ("event_edited", 7), ("command_edited", 5), ("command_overlaps", 7)}


def edit_with_digest(forger: Forger) -> None:
    forger.do(EVENT.format(FORGE, 7))
    forger.redo_event(7)


def edit_with_command(forger: Forger) -> None:
    edit_with_digest(forger)
    forger.redo_command(7)


def edit_with_link(forger: Forger) -> None:
    edit_with_command(forger)
    forger.redo_links(first=7, last=7)


def rewrite_all(forger: Forger) -> None:
    edit_with_command(forger)
    forger.redo_links()


def rewrite_the_end(forger: Forger) -> None:
    forger.do(COMMAND.format("actor = 'customer:eve'", 10))
    forger.redo_command(10)
    forger.redo_links()


def renumber(forger: Forger) -> None:
    """Remove an event, and move all later ones up and make them fit: the lane is whole, only shorter."""
    forger.do(
        *(DROP_EVENT.format(10), DROP_COMMAND.format(10)),
        *(EVENT.format(f"seq = {seq - 1}", seq) for seq in (11, 12)),
        *(COMMAND.format(f"first_seq = {seq - 1}", seq) for seq in (11, 12)),
        "UPDATE stream SET version = version - 1 WHERE lane = 6 AND version = 6",
    )
    forger.redo_links()


def leave_a_gap(forger: Forger) -> None:
    forger.do(
        EVENT.format("version = 4", 12),
        "UPDATE stream s SET version = 4 FROM event e WHERE s.stream_id = e.stream_id AND e.lane = 6 AND e.seq = 12",
    )
    forger.redo_event(12)
    forger.redo_command(12)
    forger.redo_links()


def hand_to_another_stream(forger: Forger) -> None:
    """Move the last event to another stream than its command says."""
    forger.do(
        "UPDATE stream s SET version = 2 FROM event e WHERE s.stream_id = e.stream_id AND e.lane = 6 AND e.seq = 12",
        "UPDATE stream s SET version = 4 FROM event e WHERE s.stream_id = e.stream_id AND e.lane = 6 AND e.seq = 11",
        EVENT.format("version = 4, stream_id = (SELECT stream_id FROM event WHERE lane = 6 AND seq = 11)", 12),
    )
    forger.redo_event(12)
    forger.redo_command(12)
    forger.redo_links()


def begin_later(forger: Forger) -> None:
    """Let a command begin one event later, with as many events."""
    forger.do(COMMAND.format("first_seq = 5", 4))
    forger.redo_links()


def cut_off(forger: Forger) -> None:
    """Remove the last two events, without a trace in the log itself."""
    forger.do(
        "DELETE FROM event WHERE lane = 6 AND seq > 10",
        "DELETE FROM command WHERE lane = 6 AND first_seq > 10",
        "UPDATE stream s SET version = e.version"
        "  FROM (SELECT stream_id, max(version) AS version FROM event WHERE lane = 6 GROUP BY stream_id) e"
        " WHERE s.lane = 6 AND s.stream_id = e.stream_id",
    )


def empty_the_lane(forger: Forger) -> None:
    forger.do(
        "DELETE FROM event WHERE lane = 6",
        "DELETE FROM command WHERE lane = 6",
        "DELETE FROM stream WHERE lane = 6",
    )


@pytest.mark.parametrize(
    ("forge", "expected", "without_seals"),
    [
        (edit_with_digest, {("command_edited", 7)}, {("command_edited", 7)}),
        (edit_with_command, {("chain_broken", 7)}, {("chain_broken", 7)}),
        (edit_with_link, {("chain_broken", 8)}, {("chain_broken", 8)}),
        (rewrite_all, {("rewritten", 1)}, set[Place]()),
        (rewrite_the_end, {("rewritten", 9)}, set[Place]()),
        (renumber, {("tail_missing", 12)}, set[Place]()),
        (leave_a_gap, {("rewritten", 9), *GAP}, GAP),
        (hand_to_another_stream, {("rewritten", 9), ("event_edited", 12)}, {("event_edited", 12)}),
        (begin_later, {("rewritten", 1), *LATER}, LATER),
        (cut_off, {("tail_missing", 11)}, set[Place]()),
        (empty_the_lane, {("tail_missing", 1)}, set[Place]()),
    ],
)
def test_seals_find_every_rewrite_even_if_its_digests_and_links_fit_again(
    forger: Forger, forge: Callable[[Forger], None], expected: set[Place], without_seals: set[Place]
) -> None:
    forge(forger)

    assert places(lane_findings(forger)) == expected
    assert places(lane_findings(forger, sealed=False)) == without_seals
