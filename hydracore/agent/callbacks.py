"""Callbacks, the agent's reports about its boot: spooled on disk, then sent in order, each until it is accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn
from uuid import UUID

import structlog

from hydracore.agent.backoff import Backoff
from hydracore.agent.control_plane import (
    RETRY_BASE_S,
    RETRY_CAP_S,
    BadAnswer,
    Conflict,
    ControlPlane,
    ControlPlaneError,
    Gone,
    Unauthorized,
    Unavailable,
    retry_transient,
    retry_wait_s,
)
from hydracore.agent.credentials import Credentials
from hydracore.agent.errors import DiskWriteFailed, SpoolFull
from hydracore.agent.messages import STAGES, Callback, Level, Stage
from hydracore.agent.spool import CallbackSpool

_log = structlog.get_logger(__name__)

#: Seconds between two tries to write down a stage that the disk refused.
STAGE_RETRY_S = 1.0

#: The most times that the control plane may refuse callbacks of an earlier boot. Then they are dropped.
_LEFTOVER_REFUSALS_MAX = 3


class Callbacks:
    """The callbacks of one boot. Call `report` at any time; run `deliver` as a task once there are credentials."""

    def __init__(self, *, spool: CallbackSpool, boot_id: UUID, control_plane: ControlPlane) -> None:
        self._spool = spool
        self._boot_id = boot_id
        self._control_plane = control_plane
        self._spool_changed = asyncio.Event()
        self.stage: Stage = STAGES[0]
        #: The message of the present stage if the disk refused it.
        self._unspooled_message: str | None = None

    def enter_stage(self, stage: Stage, message: str) -> None:
        """Enter `stage`, which never lies before the present one, and report it."""
        assert STAGES.index(stage) >= STAGES.index(self.stage), f"{stage} after {self.stage}"
        self.stage = stage
        self._unspooled_message = None if self.report("info", message) else message
        if self._unspooled_message is not None:
            self._spool_changed.set()

    def report(self, level: Level, message: str) -> bool:
        """Spool a callback at the present stage. Returns False if the disk refused it; then it is in the log only."""
        try:
            callback = self._spool.append(self._boot_id, self.stage, level, message)
        except SpoolFull:
            # After months of errors without a control plane. The first ones say more than the latest repetition.
            _log.exception("callback_dropped", stage=self.stage, level=level)
            return True
        except DiskWriteFailed as refusal:
            _log.error("callback_dropped", stage=self.stage, level=level, message=message, what=refusal.what)
            return False
        _log.info("callback_spooled", seq=callback.seq, stage=self.stage, level=level, message=callback.message)
        self._spool_changed.set()
        return True

    async def deliver(self, credentials: Credentials) -> NoReturn:
        """Send spooled callbacks in order, for ever. Raises `Gone`.

        A stage that the disk refused is reported again until it is spooled: if the last stage never
        came, the control plane would give the server up.
        """
        while True:
            self._spool_changed.clear()
            while (callback := self._spool.next_callback(self._boot_id)) is not None:
                await retry_transient(lambda callback=callback: self._send(credentials, callback))
            if self._unspooled_message is None:
                await self._spool_changed.wait()
            else:
                await asyncio.sleep(STAGE_RETRY_S)
                self.enter_stage(self.stage, self._unspooled_message)

    async def _send(self, credentials: Credentials, callback: Callback) -> None:
        """Send `callback` once, and set which one the spool gives out next.

        Raises `ControlPlaneError` and `DiskWriteFailed`.
        """
        try:
            answer = await credentials.send_callback(callback)
        except Conflict as error:
            wanted = error.expected_seq
            # A 409 that expects the callback just sent counts as a bad answer, too: obeying it would be a tight loop.
            if wanted is None or wanted == callback.seq or not self._spool.resend_from(callback.boot_id, wanted):
                raise BadAnswer(error.call, f"409 that expects {wanted} instead of {callback.seq}") from error
            _log.warning("callbacks_resent", sent_seq=callback.seq, expected_seq=wanted)
        else:
            self._spool.mark_accepted(callback.boot_id, answer.seq)


async def deliver_leftovers(
    spool: CallbackSpool,
    control_plane: ControlPlane,
    agent_key: str,
    *,
    replace_key: Callable[[str, UUID], Awaitable[str]],
) -> None:
    """Deliver the callbacks that earlier boots spooled and could not deliver before they died.

    Must be called before the new boot enrols: from then on the control plane accepts no callback of
    an older boot. `replace_key` takes the refused key and an earlier boot's id, makes one try to get
    another key, and raises `ControlPlaneError` and `DiskWriteFailed`.
    """
    for boot_id in spool.boots_with_pending():
        deliver = partial(_deliver_boot, spool, control_plane, boot_id, agent_key=agent_key, replace_key=replace_key)
        # Repeated while the disk refuses. If the key was replaced before that, the old one is refused once more, and
        # `replace_key` returns the one on disk.
        if not await retry_transient(deliver):
            _log.warning("leftover_callbacks_dropped", of_boot_id=str(boot_id))


async def _deliver_boot(
    spool: CallbackSpool,
    control_plane: ControlPlane,
    boot_id: UUID,
    *,
    agent_key: str,
    replace_key: Callable[[str, UUID], Awaitable[str]],
) -> bool:
    """Deliver one boot's callbacks. Returns False if the control plane refuses them. Raises `DiskWriteFailed`.

    A refusal must not keep the new boot from starting, so the number of refused tries is bounded. Nor
    does a 410 end the agent here: the enrolment that follows tells whether it is still wanted.
    """
    backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
    refusals = 0
    is_key_refused = False
    while (callback := spool.next_callback(boot_id)) is not None:
        try:
            if is_key_refused:
                agent_key = await replace_key(agent_key, boot_id)
                is_key_refused = False
            answer = await control_plane.callback(agent_key, callback)
        except Gone:
            return False
        except ControlPlaneError as error:
            if not isinstance(error, Unavailable):
                refusals += 1
                # If the key cannot be replaced, the refused one is tried again: either of the two answers may change.
                is_key_refused = isinstance(error, Unauthorized)
            if refusals == _LEFTOVER_REFUSALS_MAX:
                return False
            if isinstance(error, Conflict) and error.expected_seq is not None:
                spool.resend_from(boot_id, error.expected_seq)
            await asyncio.sleep(retry_wait_s(error, backoff))
        else:
            spool.mark_accepted(boot_id, answer.seq)
            backoff.reset()
    return True
