"""Every projection equals its rebuild at every prefix: what is written step by step is what a fold of the whole gives."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from events.decide import decide
from events.errors import Rejected
from events.evolve import evolve, evolve_all
from events.ids import lane_of
from events.record import Append
from events.state import Instance
from events.types import UsageRecorded
from projections.activity import ActivityFold
from projections.definition import Accumulator
from projections.fact import Fact
from projections.fleet import Fleet, FleetFold, Member
from projections.instance import InstanceProjection
from projections.provision_log import ProvisionLogProjection
from projections.reservation import ReservationProjection
from projections.tables import Row, Table
from projections.usage_daily import UsageFold
from tests.random_lifecycles import InstanceIdentity, Move, command_of, erasure, moves
from tests.store_commands import origin

START = datetime(2026, 9, 21, 22, tzinfo=UTC)
CUSTOMERS = ("ada", "bob")

_moves_of_each = st.lists(st.tuples(st.sampled_from(CUSTOMERS), moves), min_size=1, max_size=40)


def erased_at(history: list[tuple[str, Move]], at: int) -> list[tuple[str, Move]]:
    """The history with an erasure of one customer somewhere in it or after it."""
    return [*history[:at], (CUSTOMERS[0], erasure), *history[at:]]


histories = st.one_of(_moves_of_each, st.builds(erased_at, _moves_of_each, st.integers(1, 40)))


def lived(history: Sequence[tuple[str, Move]]) -> list[Append]:
    """The appends of a history; a refused command adds none."""
    states: dict[UUID, Instance] = {}
    appends = list[Append]()
    for name, move in history:
        identity = InstanceIdentity("acme", name)
        before = states.get(identity.id)
        command = command_of(move, identity, before)
        try:
            events = decide(before, command, stream_id=identity.id)
        except Rejected:
            continue
        if not events:
            continue
        after = before
        for event in events:
            after = evolve(after, event, stream_id=identity.id)
        assert after is not None
        states[identity.id] = after
        appends.append(
            Append(
                stream_id=identity.id,
                lane=lane_of(identity.id),
                name=type(command).__name__,
                before=before,
                after=after,
                events=events,
                origin=origin("worker" if len(appends) % 3 else f"customer:{name}"),
            )
        )
    return appends


@settings(max_examples=60)
@given(histories)
def test_inline_tables_equal_the_fold_of_their_streams_after_every_append(history: list[tuple[str, Move]]) -> None:
    folds = {
        (kind, identity.id): kind().begin(identity.id, lane=lane_of(identity.id))
        for kind in INLINE
        for identity in PEOPLE
    }
    written: dict[Any, dict[Any, Row]] = {kind: {} for kind in INLINE}
    given_by: dict[Any, dict[Any, Row]] = {whose: {} for whose in folds}

    for append in lived(history):
        for kind in INLINE:
            projection = kind()
            for row in projection.rows(append):
                put(written[kind], projection.tables[0], row)
            fold = folds[kind, append.stream_id]
            fold.feed(append.events)
            fresh = given_by[kind, append.stream_id]
            fresh.update({keyed(projection.tables[0], row): row for row in fold.rows()})
            mine = {key: row for key, row in written[kind].items() if append.stream_id in row}
            assert mine == fresh


INLINE = (InstanceProjection, ProvisionLogProjection, ReservationProjection)
PEOPLE = tuple(InstanceIdentity("acme", name) for name in CUSTOMERS)

#: What a row of an inline statement calls the columns of its table.
_NAMES = {"instance_id": "id", "seq": "version"}


def put(rows: dict[Any, Row], table: Table, given: dict[str, Any]) -> None:
    """As the statement does: the newest row of a key, with the time at which a reservation was first made."""
    named = {name: given.get(name, given.get(_NAMES.get(name, ""))) for name in table.columns}
    row = tuple(named.values())
    key = keyed(table, row)
    if "reserved_at" in named:
        known = rows.get(key)
        first = named["reserved_at"] or named["released_at"]
        named["reserved_at"] = first if known is None else known[table.columns.index("reserved_at")]
        row = tuple(named.values())
    rows[key] = row


def keyed(table: Table, row: Row) -> tuple[Any, ...]:
    return tuple(row[table.columns.index(name)] for name in table.key)


def facts_of(appends: Sequence[Append]) -> list[Fact]:
    facts = list[Fact]()
    for number, append in enumerate(appends):
        for n, event in enumerate(append.events):
            facts.append(
                Fact(
                    lane=append.lane,
                    seq=len(facts) + 1,
                    stream_id=append.stream_id,
                    tenant_id="acme",
                    # So that hours and days end somewhere in the middle.
                    recorded_at=START + timedelta(minutes=17 * number),
                    actor=append.origin.actor,
                    command=append.name,
                    first=n == 0,
                    event_or_type=event,
                )
            )
    return facts


def added_up(parts: Sequence[dict[str, list[Row]]]) -> dict[Any, Any]:
    """What the additive statements make of rows that come one after the other."""
    sums: dict[Any, Any] = {}
    for part in parts:
        for table, rows in part.items():
            for row in rows:
                if table == "fleet_member":
                    sums[table, row[:2]] = row[2:]
                elif table == "fleet":
                    known = sums.get((table, row[:6]), (0, 0))
                    sums[table, row[:6]] = (known[0] + row[6], known[1] + row[7])
                elif table == "activity":
                    known = sums.get((table, row[:5]), (0, 0, row[7], row[8]))
                    last = (min(known[2], row[7]), max(known[3], row[8]))
                    sums[table, row[:5]] = (known[0] + row[5], known[1] + row[6], *last)
                elif table == "usage_daily":
                    known = sums.get((table, row[:3]), (0, 0, 0, 0))
                    sums[table, row[:3]] = tuple(a + b for a, b in zip(known, row[3:], strict=True))
                else:
                    sums[table, row] = True
    return sums


def rows_of(fold: Accumulator, facts: Sequence[Fact]) -> dict[str, list[Row]]:
    fold.feed(facts)
    return {table: list(rows) for table, rows in fold.rows().items()}


@settings(max_examples=60)
@given(histories, st.data())
def test_followed_tables_equal_one_fold_of_the_log_however_it_was_split(
    history: list[tuple[str, Move]], data: st.DataObject
) -> None:
    facts = facts_of(lived(history))
    end = data.draw(st.integers(0, len(facts)))
    cuts = sorted({0, end, *data.draw(st.lists(st.integers(0, end), max_size=5))})
    parts = [facts[a:b] for a, b in pairwise(cuts)]
    # A rebuild takes stream by stream.
    whole = sorted(facts[:end], key=lambda fact: fact.stream_id)

    def usage(some: Sequence[Fact]) -> list[Fact]:
        return [fact for fact in some if isinstance(fact.event, UsageRecorded)]

    assert added_up([rows_of(ActivityFold(), part) for part in parts]) == added_up([rows_of(ActivityFold(), whole)])
    assert added_up([rows_of(UsageFold(), usage(part)) for part in parts]) == added_up(
        [rows_of(UsageFold(), usage(whole))]
    )
    known: dict[UUID, Member] = {}
    stepwise = list[dict[str, list[Row]]]()
    for part in parts:
        stepwise.append(rows_of(FleetFold(known), moved(part)))
        known |= {row[1]: Member(*row[2:]) for row in stepwise[-1]["fleet_member"]}
    assert added_up(stepwise) == added_up([rows_of(FleetFold({}), moved(whole))])
    balance = sum(entries - exits for key, (entries, exits) in fleet(stepwise).items())
    assert balance == len({fact.stream_id for fact in facts[:end]}), "each instance is counted in one place"


def moved(facts: Sequence[Fact]) -> list[Fact]:
    return [fact for fact in facts if fact.event.__struct_config__.tag in Fleet.types]


def fleet(parts: Sequence[dict[str, list[Row]]]) -> dict[Any, tuple[int, int]]:
    return {key: value for key, value in added_up(parts).items() if key[0] == "fleet"}


@settings(max_examples=60)
@given(histories, st.data())
def test_folding_several_events_at_once_gives_the_same_state_as_one_by_one(
    history: list[tuple[str, Move]], data: st.DataObject
) -> None:
    appends = [append for append in lived(history) if append.stream_id == PEOPLE[0].id]
    events = [event for append in appends for event in append.events]
    cut = data.draw(st.integers(0, len(events)))
    states: list[Instance | None] = [None]
    for event in events:
        states.append(evolve(states[-1], event, stream_id=PEOPLE[0].id))
    before = copy.deepcopy(states[cut])

    assert evolve_all(None, events[:cut], stream_id=PEOPLE[0].id) == states[cut]
    assert evolve_all(states[cut], events[cut:], stream_id=PEOPLE[0].id) == states[-1]
    assert before == states[cut], "the state that a fold starts from is not changed"
