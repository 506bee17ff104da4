"""Histories as text: long values are truncated, except those of a state, which is shown whole."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import click
from click.testing import CliRunner

from hydracore.audit.history_rendering import HistoryChange, HistoryDifference, HistoryFieldEvent, HistoryState
from hydracore.cli.audit_history_view import print_difference, print_state
from hydracore.cli.printing import LINE_MAX, SHOWN_MAX, brief

ID = UUID(int=7)
TIME = "2026-11-27T12:00:00Z"
LONG = "x" * 50_000


def lines_of_state(state: dict[str, Any]) -> list[str]:
    @click.command()
    def tell() -> None:
        print_state(HistoryState(instance_id=ID, version=1, recorded_at=TIME, state=state), as_json=False)

    return CliRunner().invoke(tell).output.splitlines()


def test_the_values_of_a_state_are_shown_whole() -> None:
    assert lines_of_state({"agent_name": LONG, "tier": "starter"})[1:] == [
        f"  agent_name  {LONG}",
        "  tier        starter",
    ]


def test_a_long_name_does_not_widen_the_name_column_of_a_state_beyond_its_limit() -> None:
    _, named, other = lines_of_state({"advanced": {LONG: 1}, "tier": "starter"})

    assert named == f"  advanced.{LONG}  1"
    assert other == f"  {'tier':<{SHOWN_MAX}}  starter"


def test_a_difference_truncates_long_names_and_values() -> None:
    step = HistoryFieldEvent(
        lane=7, seq=1, version=2, recorded_at=TIME, type="config_changed", actor=LONG, command=LONG, before=1, after=2
    )
    change = HistoryChange(field=LONG, before=1, after=LONG, event_count=1, events=[step])
    found = HistoryDifference(
        instance_id=ID, from_version=1, to_version=2, from_recorded_at=TIME, to_recorded_at=TIME, changes=[change]
    )

    @click.command()
    def tell() -> None:
        print_difference(found, as_json=False)

    told = CliRunner().invoke(tell).output.splitlines()
    assert f"{brief(LONG)}  1 -> {brief(LONG)}" in told
    assert f"    v2  {TIME}  config_changed by {brief(LONG)} ({brief(LONG)})" in told
    assert max(map(len, told)) <= LINE_MAX
