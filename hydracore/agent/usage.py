"""Sends the ledger's entries to the control plane: in order, in batches that are repeated until they are accepted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import NoReturn
from uuid import UUID

import structlog

from hydracore.agent.control_plane import BadAnswer, Conflict, ControlPlane, retry_transient
from hydracore.agent.credentials import Credentials
from hydracore.agent.expressclaw.ledger import Batch, Ledger
from hydracore.agent.messages import UsageBatch
from hydracore.agent.state import StateDir

_log = structlog.get_logger(__name__)

#: Seconds that entries are gathered before they are sent, so that many chats at once do not make a request each.
GATHER_S = 0.25

#: The longest time between two checks of the ledger, if it gets no entries.
CHECK_EVERY_S = 60.0


class UsageSender:
    """`ledger` is stored in `state`'s directory."""

    def __init__(self, ledger: Ledger, *, state: StateDir, control_plane: ControlPlane, boot_id: UUID) -> None:
        self._ledger = ledger
        self._state = state
        self._control_plane = control_plane
        self._boot_id = boot_id

    async def deliver(self, credentials: Credentials) -> NoReturn:
        """Send batches as there are entries, for ever. Raises `Gone`."""
        while True:
            # The first round does not wait for entries: the boot before this one may have ended before it had sent all.
            await asyncio.sleep(GATHER_S)
            self._ledger.entries_added.clear()
            while (batch := await retry_transient(self._next_batch)) is not None:
                await retry_transient(lambda batch=batch: self._send(credentials, batch))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_EVERY_S):
                    await self._ledger.entries_added.wait()

    async def _next_batch(self) -> Batch | None:
        with self._state.translating_write_errors():
            return await self._ledger.next_batch()

    async def _send(self, credentials: Credentials, batch: Batch) -> None:
        """Send `batch` once, and set which one the ledger gives out next.

        Raises `ControlPlaneError` and `DiskWriteFailed`.
        """
        request = UsageBatch(boot_id=self._boot_id, ledger_id=batch.ledger_id, seq=batch.seq, entries=batch.entries)
        try:
            await credentials.call_with_key(lambda key: self._control_plane.usage(key, request))
        except Conflict as error:
            wanted = error.expected_seq
            # A 409 that expects the batch just sent counts as a bad answer, too: obeying it would be a tight loop.
            with self._state.translating_write_errors():
                if wanted is None or wanted == batch.seq or not await self._ledger.resend_from(wanted):
                    raise BadAnswer(error.call, f"409 that expects {wanted} instead of {batch.seq}") from error
            _log.warning("usage_resent", sent_seq=batch.seq, expected_seq=wanted)
        else:
            with self._state.translating_write_errors():
                await self._ledger.mark_accepted(batch.seq)
