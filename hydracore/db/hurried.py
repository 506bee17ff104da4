"""Connections that end where the server says nothing, for those who are waited for."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Final, TypeVar

import psycopg
from psycopg.abc import PQGen

from events.exchange import hang_up, hanging_up

#: How long somebody who is waited for himself waits for a word of the database: as long as for one that is gone (`pool._WATCHFUL`).
ANSWER_S_MAX: Final = 20.0

T = TypeVar("T")


class HurriedConnection(psycopg.AsyncConnection):
    """Ends where the server says nothing for `answer_s_max`: whoever waits gets the `OperationalError` of a lost connection.

    A server that is frozen keeps its connections, and neither TCP nor a cancelling of the statement, which it would have to answer
    as well, finds out.
    """

    answer_s_max: ClassVar[float] = ANSWER_S_MAX

    async def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        with hanging_up(self.answer_s_max, partial(hang_up, self)):
            return await super().wait(gen, *args, **kwargs)
