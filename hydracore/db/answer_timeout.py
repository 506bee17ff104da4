"""Connections with a timeout for each answer of the server, for work that a caller waits for."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Final, TypeVar

import psycopg
from psycopg.abc import PQGen

from events.exchange import hang_up, hang_up_after

#: How long the server may take to answer a statement: as long as a connection takes to notice that the
#: server's machine is gone (`pool._TIMEOUTS`).
ANSWER_S_MAX: Final = 20.0

T = TypeVar("T")


class AnswerTimeoutConnection(psycopg.AsyncConnection):
    """Closes itself when the server takes longer than `answer_s_max` to answer.

    The caller gets the `OperationalError` of a lost connection.

    Nothing else notices a frozen server process: its kernel keeps the connection alive, and it does not
    react to a request to cancel the statement either.
    """

    answer_s_max: ClassVar[float] = ANSWER_S_MAX

    async def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        with hang_up_after(self.answer_s_max, partial(hang_up, self)):
            return await super().wait(gen, *args, **kwargs)
