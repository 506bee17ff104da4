"""Answers that their readers do not take: how long, and how much of them, is held for them.

A transport holds what it was given until its peer has taken it. That has no limit of its own, as a keep-alive ends, and an answer
to HTTP/1.0 or a `Connection: close`, with a transport that closes once everything is taken.
"""

from __future__ import annotations

import asyncio
import fcntl
import termios
from typing import Final

#: How long a peer may take as good as nothing of what waits for it. It is seen within twice that time.
STALL_S = 20.0

#: What is as good as nothing in that time: a byte now and then would hold megabytes for days.
TAKEN_MIN_BYTES: Final = 16 * 1024

#: What all answers of this process may have together that wait to be read.
UNREAD_MAX_BYTES = 256 * 1024 * 1024


class Unread:
    """What one connection's peer has not read yet: watched from `begin` on until `end`, and given up with the connection where that
    does not become less."""

    #: Whoever is watched, in the order in which that began.
    _watched: Final[dict[Unread, None]] = {}

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        #: What was owed when the watch began, and at the last look.
        self._owed_at_first = self._owed = 0

    @property
    def is_watched(self) -> bool:
        return self._timer is not None

    @property
    def held_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def begin(self) -> None:
        """Again and again as you like."""
        if self._timer is not None:
            return
        self._owed_at_first = self._owed = owed_to(self._transport)
        self._timer = self._loop.call_later(STALL_S, self.look)
        self._watched[self] = None
        self._make_room()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            del self._watched[self]

    def look(self) -> None:
        """Whether it has become less since the last look; to be called while it is watched."""
        if self._has_taken_of(self._owed):
            self._owed = owed_to(self._transport)
            self._timer = self._loop.call_later(STALL_S, self.look)
        else:
            self.give_up()

    def _make_room(self) -> None:
        """Whoever came last is not the one to go: nobody could know yet how it reads."""
        beyond = sum(each.held_bytes for each in self._watched) - UNREAD_MAX_BYTES
        if beyond <= 0:
            return
        # Those who read stay before those who do not. Of each kind, whoever has been watched longest goes first.
        for each in sorted((each for each in self._watched if each is not self), key=Unread._is_reading):
            if beyond <= 0:
                break
            beyond -= each.held_bytes
            each.give_up()

    def _is_reading(self) -> bool:
        """Since the watch began: in the moment since the last look nobody takes much. Whoever has stopped goes with the next one."""
        return self._has_taken_of(self._owed_at_first)

    def _has_taken_of(self, owed: int) -> bool:
        return owed - owed_to(self._transport) >= TAKEN_MIN_BYTES

    def give_up(self) -> None:
        """End the connection at once, whatever waits."""
        self.end()
        self._transport.abort()


def owed_to(transport: asyncio.Transport) -> int:
    """How many bytes its peer has not acknowledged: what the transport holds, and what the kernel has of it. The kernel takes the
    next megabyte only once it has passed on a good part of the one before."""
    queued = bytearray(4)
    try:
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
    except (OSError, ValueError):
        # The connection is gone, or the system cannot tell.
        return transport.get_write_buffer_size()
    return transport.get_write_buffer_size() + int.from_bytes(queued, "little", signed=True)
