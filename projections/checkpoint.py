"""Checkpoints: how far each follower of the log is in each lane.

Whoever has leased a checkpoint moves it, in the transaction that applies the events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from events.exchange import Statement, array_literal
from events.sql import Statements

_SQL = Statements("projections", "checkpoint.sql")
_MOVE = _SQL["move"]
_PARK = _SQL["park"]

#: How long a parked lane rests until it is tried, and its error logged, again, in seconds.
PARKED_S = 30.0


class Move(NamedTuple):
    """A leased checkpoint moves from the number `before` to `after`."""

    follower: str
    lane: int
    before: int
    after: int


def move(moves: Sequence[Move]) -> Statement:
    """The statement that moves checkpoints and unparks their lanes. Returns a row for each that it moved."""
    columns = (
        array_literal(one.follower for one in moves),
        array_literal(str(one.lane) for one in moves),
        array_literal(str(one.before) for one in moves),
        array_literal(str(one.after) for one in moves),
    )
    return Statement(_MOVE, columns)


def park(follower: str, lane: int, *, error: str) -> Statement:
    """The statement that parks a lane for `PARKED_S`, with the error in its checkpoint."""
    return Statement(_PARK, (follower.encode(), b"%d" % lane, b"%g" % PARKED_S, error.encode()))
