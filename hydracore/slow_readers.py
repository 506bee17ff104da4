"""Limits on answers that their peers do not read: how long they are kept, and how many bytes of them in all.

A transport holds what was written to it until its peer has read it, without any limit. That also goes
for a connection that is being closed (after a keep-alive, HTTP/1.0 or `Connection: close`): its
transport closes only when everything has been read.
"""

from __future__ import annotations

import asyncio
import fcntl
import termios
from typing import Final

#: Seconds in which a peer has to read `READ_BYTES_MIN` of what waits for it. A stall is noticed
#: within twice that time.
STALL_S = 20.0

#: The least that a peer has to read in `STALL_S`. Without it, a peer could hold megabytes for days by
#: reading a byte now and then.
READ_BYTES_MIN: Final = 16 * 1024

#: The most bytes that wait to be read on all watched connections of this process. Beyond that,
#: connections are aborted.
UNREAD_BYTES_MAX = 256 * 1024 * 1024


class SlowReaderGuard:
    """Watches what a connection's peer has not read yet, from `begin` to `end`. Aborts the connection if it stalls."""

    #: All that are watched, in the order in which their watches began.
    _watched: Final[dict[SlowReaderGuard, None]] = {}

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        #: The bytes that the peer had not read when the watch began, and at the last check.
        self._unacknowledged_at_first = self._unacknowledged = 0

    @property
    def buffered_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def begin(self) -> None:
        """Begin to watch. Does nothing if that has begun already."""
        if self._timer is not None:
            return
        self._unacknowledged_at_first = self._unacknowledged = unacknowledged_bytes(self._transport)
        self._timer = self._loop.call_later(STALL_S, self.check)
        self._watched[self] = None
        self._make_room()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            del self._watched[self]

    def check(self) -> None:
        """Abort the connection if the peer has not read enough since the last check. Called while it is watched."""
        if self._has_read_since(self._unacknowledged):
            self._unacknowledged = unacknowledged_bytes(self._transport)
            self._timer = self._loop.call_later(STALL_S, self.check)
        else:
            self.abort()

    def _make_room(self) -> None:
        """Abort other connections while more than `UNREAD_BYTES_MAX` wait.

        This connection stays, as it is not known yet how fast its peer reads.
        """
        beyond = sum(each.buffered_bytes for each in self._watched) - UNREAD_BYTES_MAX
        if beyond <= 0:
            return
        # First those whose peers do not read, then the others; within each group, those that were watched longest first.
        for each in sorted((each for each in self._watched if each is not self), key=SlowReaderGuard._is_reading):
            if beyond <= 0:
                break
            beyond -= each.buffered_bytes
            each.abort()

    def _is_reading(self) -> bool:
        """Whether the peer has read enough since the watch began.

        The time since the last check may be too short to read much. If the peer has stopped reading,
        the next check aborts the connection.
        """
        return self._has_read_since(self._unacknowledged_at_first)

    def _has_read_since(self, earlier: int) -> bool:
        """Whether the peer has read `READ_BYTES_MIN` since `earlier` bytes were unacknowledged."""
        return earlier - unacknowledged_bytes(self._transport) >= READ_BYTES_MIN

    def abort(self) -> None:
        """Abort the connection, and drop what waits."""
        self.end()
        self._transport.abort()


def unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """The bytes that the peer has not acknowledged: those in the transport's buffer, and those in the kernel's.

    The transport's alone would not do: the kernel takes more of it in steps of up to a megabyte.
    """
    queued = bytearray(4)
    try:
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
    except (OSError, ValueError):
        # The connection is gone, or the system cannot tell.
        return transport.get_write_buffer_size()
    return transport.get_write_buffer_size() + int.from_bytes(queued, "little", signed=True)
