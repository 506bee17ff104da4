"""What the agent tells about its boot: noted on disk first, then delivered in order, each until the control plane has it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
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
    insist,
    retry_wait_s,
)
from hydracore.agent.credentials import Credentials
from hydracore.agent.errors import DiskRefuses, SpoolFull
from hydracore.agent.messages import STAGES, Callback, Level, Stage
from hydracore.agent.spool import CallbackSpool

_log = structlog.get_logger(__name__)

#: Between two tries to have the disk take what must be told.
DISK_AGAIN_S = 1.0

#: A boot's last words are not worth more tries than this against a control plane that answers and does not want them.
_LEFTOVER_REFUSALS_MAX = 3


class Callbacks:
    """The callbacks of one boot. `report` at any time; `deliver` runs beside, once there are credentials."""

    def __init__(self, *, spool: CallbackSpool, boot_id: UUID, control_plane: ControlPlane) -> None:
        self._spool = spool
        self._boot_id = boot_id
        self._control_plane = control_plane
        self._news = asyncio.Event()
        self.stage: Stage = STAGES[0]
        #: What was said of the present stage, where the disk did not take it.
        self._untold: str | None = None

    def reach(self, stage: Stage, message: str) -> None:
        """The boot has come to `stage`; never back."""
        assert STAGES.index(stage) >= STAGES.index(self.stage), f"{stage} after {self.stage}"
        self.stage = stage
        self._untold = None if self.report("info", message) else message
        if self._untold is not None:
            self._news.set()

    def report(self, level: Level, message: str) -> bool:
        """Tell something that happened at the present stage. What the disk does not take is told in the log alone: False."""
        try:
            callback = self._spool.append(self._boot_id, self.stage, level, message)
        except SpoolFull:
            # Months of trouble without a control plane. The beginning says more than the latest repetition.
            _log.exception("callback_dropped", stage=self.stage, level=level)
            return True
        except DiskRefuses as refusal:
            _log.error("callback_dropped", stage=self.stage, level=level, message=message, what=refusal.what)
            return False
        _log.info("callback_spooled", seq=callback.seq, stage=self.stage, level=level, message=callback.message)
        self._news.set()
        return True

    async def deliver(self, credentials: Credentials) -> NoReturn:
        """Send what is spooled, in order, for ever. Raises `Gone`.

        A stage is said again until the disk takes it: the control plane waits for the last one, and gives the server up without.
        """
        while True:
            self._news.clear()
            while (callback := self._spool.pending(self._boot_id)) is not None:
                await insist(lambda callback=callback: self._send(credentials, callback))
            if self._untold is None:
                await self._news.wait()
            else:
                await asyncio.sleep(DISK_AGAIN_S)
                self.reach(self.stage, self._untold)

    async def _send(self, credentials: Credentials, callback: Callback) -> None:
        """One try at what comes next; afterwards the spool points at the one to send next."""
        try:
            answer = await credentials.report(callback)
        except Conflict as error:
            wanted = error.expected_seq
            # To be asked for the very callback just sent would mean a tight loop, so it counts as nonsense, too.
            if wanted is None or wanted == callback.seq or not self._spool.resend_from(callback.boot_id, wanted):
                raise BadAnswer(error.call, f"409 that expects {wanted} instead of {callback.seq}") from error
            _log.warning("callbacks_resent", sent_seq=callback.seq, expected_seq=wanted)
        else:
            self._spool.accepted(callback.boot_id, answer.seq)


async def deliver_leftovers(
    spool: CallbackSpool,
    control_plane: ControlPlane,
    agent_key: str,
    *,
    replace_key: Callable[[str, UUID], Awaitable[str]],
) -> None:
    """Deliver what an earlier boot noted and did not get through before it died.

    This comes before the new boot enrols, because from then on the control plane takes no word of an older one. `replace_key`
    makes one try to get another key than a refused one under an earlier boot's id, and raises `ControlPlaneError`.
    """
    for boot_id in spool.boots_with_pending():
        if not await _deliver_boot(spool, control_plane, boot_id, agent_key=agent_key, replace_key=replace_key):
            _log.warning("leftover_callbacks_dropped", of_boot_id=str(boot_id))


async def _deliver_boot(
    spool: CallbackSpool,
    control_plane: ControlPlane,
    boot_id: UUID,
    *,
    agent_key: str,
    replace_key: Callable[[str, UUID], Awaitable[str]],
) -> bool:
    """False when the control plane does not want them. That must not keep the new boot from starting, so a control plane
    that is there and refuses is asked a few times only; whether the agent itself is wanted is for enrolment to ask."""
    backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
    refusals = 0
    is_key_refused = False
    while (callback := spool.pending(boot_id)) is not None:
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
                # Without another key the refused one is tried again: either answer may be the one that changes.
                is_key_refused = isinstance(error, Unauthorized)
            if refusals == _LEFTOVER_REFUSALS_MAX:
                return False
            if isinstance(error, Conflict) and error.expected_seq is not None:
                spool.resend_from(boot_id, error.expected_seq)
            await asyncio.sleep(retry_wait_s(error, backoff))
        else:
            spool.accepted(boot_id, answer.seq)
            backoff.reset()
    return True
