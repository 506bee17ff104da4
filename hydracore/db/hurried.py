"""Connections that give up on a server that says nothing, for work that somebody waits for."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Final, TypeVar

import psycopg
from psycopg.abc import PQGen

from events.exchange import hang_up, hanging_up

#: How long such work waits for a word of the server: as long as a connection takes to notice that its machine is gone
#: (`pool._WATCHFUL`).
ANSWER_S_MAX: Final = 20.0

T = TypeVar("T")


class HurriedConnection(psycopg.AsyncConnection):
    """Ends where the server says nothing for `answer_s_max`: whoever waits gets the `OperationalError` of a lost connection.

    Nothing else finds out that a server is frozen: its kernel keeps the connections alive, and it does not answer a request to cancel
    the statement either.
    """

    answer_s_max: ClassVar[float] = ANSWER_S_MAX

    async def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        with hanging_up(self.answer_s_max, partial(hang_up, self)):
            return await super().wait(gen, *args, **kwargs)
