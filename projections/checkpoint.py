"""Checkpoints: how far each follower of the log is in each lane. They are moved by whoever has leased them, in the transaction of what
was made of the events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from events.exchange import Statement, array
from events.sql import Statements

_SQL = Statements("projections", "checkpoint.sql")
_MOVE = _SQL["move"]
_PARK = _SQL["park"]

#: How long a parked lane rests before it is looked at, and complained about, again.
PARKED_S = 30.0


class Move(NamedTuple):
    """A leased checkpoint that goes from the number `before` to `after`."""

    follower: str
    lane: int
    before: int
    after: int


def move(moves: Sequence[Move]) -> Statement:
    """Moves checkpoints, and unparks them; a row for each that was moved."""
    columns = (
        array(one.follower for one in moves),
        array(str(one.lane) for one in moves),
        array(str(one.before) for one in moves),
        array(str(one.after) for one in moves),
    )
    return Statement(_MOVE, columns)


def park(follower: str, lane: int, *, error: str) -> Statement:
    """Has a lane rest for `PARKED_S`, with the reason in its checkpoint."""
    return Statement(_PARK, (follower.encode(), b"%d" % lane, b"%g" % PARKED_S, error.encode()))
