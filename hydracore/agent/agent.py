"""The agent as a whole: one root directory, one process at a time, and boots until it is no longer wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import structlog
from structlog.contextvars import bound_contextvars

from hydracore import clock
from hydracore.agent.boot import Boot
from hydracore.agent.boot_file import BootFile, read_boot_file
from hydracore.agent.callbacks import deliver_leftovers
from hydracore.agent.control_plane import ControlPlane, Gone
from hydracore.agent.credentials import load_secrets, replace_refused_key
from hydracore.agent.errors import DiskWriteFailed
from hydracore.agent.expressclaw.runtime import ExpressClaw
from hydracore.agent.expressclaw.setup import make_setup
from hydracore.agent.expressclaw.store import STORE_FILE, Store
from hydracore.agent.identity import load_identity
from hydracore.agent.messages import SecretsRequest
from hydracore.agent.runtime import DEFAULT_RUNTIME, RuntimeKind
from hydracore.agent.spool import CallbackSpool
from hydracore.agent.state import StateDir

_log = structlog.get_logger(__name__)

#: A second 410 within this time means that the agent is no longer wanted. The first may have
#: concerned its boot id only.
SUPERSEDED_AGAIN_S = 600.0


def built_in_runtimes(store: Store) -> Mapping[str, RuntimeKind]:
    """The runtimes that an agent can run, by the `type` in their configuration."""
    return {DEFAULT_RUNTIME: RuntimeKind(create=partial(ExpressClaw, store=store), check=make_setup)}


class Agent:
    """One agent. `run` installs no signal handler and changes no global state, and it can be cancelled at any time."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def run(self) -> None:
        """Work until the control plane answers 410. From then on this returns at once, after a restart too.

        Raises `StartRefused` (`BootFileInvalid`, `AlreadyRunning`, `StateDamaged`) when it cannot start,
        and `DiskWriteFailed` when there is no room to start.
        """
        state = StateDir(self._root)
        with state.locked():
            if state.retired:
                _log.info("agent_retired_before")
                return
            boot_file = read_boot_file(self._root)
            with bound_contextvars(instance_id=str(boot_file.instance_id), attempt=boot_file.attempt):
                await self._run_until_gone(state, boot_file)
                try:
                    state.retire()
                except DiskWriteFailed as refusal:
                    # A later start that has room is refused at its enrolment, and tries to store this again.
                    _log.warning("retirement_not_stored", what=refusal.what)
                _log.info("agent_retired")

    async def _run_until_gone(self, state: StateDir, boot_file: BootFile) -> None:
        """Work until the control plane no longer wants this agent."""
        identity = load_identity(state)
        stored = load_secrets(state)
        spool = CallbackSpool(state)
        with state.translating_write_errors():
            store = Store(state.path / STORE_FILE, now_ms=clock.now_ms, new_id=uuid4)
        control_plane = ControlPlane(boot_file.control_plane_url)
        started_s = time.monotonic()

        async def replace_key(refused: str, boot_id: UUID) -> str:
            # As in `Boot._on_secrets_renewed`: the control plane may have lost usage. The next boot cannot notice it, as it will
            # find a key that is acknowledged already.
            store.ledger.resend_last()
            asked = SecretsRequest(instance_id=boot_file.instance_id, attempt=boot_file.attempt, boot_id=boot_id)
            return await replace_refused_key(
                refused, asked, state=state, control_plane=control_plane, identity=identity
            )

        def new_boot() -> Boot:
            return Boot(
                boot_file=boot_file,
                boot_id=uuid4(),
                identity=identity,
                state=state,
                spool=spool,
                store=store,
                control_plane=control_plane,
                runtimes=built_in_runtimes(store),
                uptime_s=lambda: time.monotonic() - started_s,
            )

        try:
            if stored is not None:
                await deliver_leftovers(spool, control_plane, stored.secrets.agent_key, replace_key=replace_key)
            await self._boot_until_gone(new_boot)
        finally:
            store.close()
            spool.close()
            await control_plane.aclose()

    async def _boot_until_gone(self, new_boot: Callable[[], Boot]) -> None:
        """Boot. After a 410 to a boot that had enrolled, boot once more.

        A 410 to an enrolment means that this agent is no longer wanted. A 410 to an enrolled boot may
        concern its boot id only: a delayed enrolment of an earlier process, killed meanwhile,
        supersedes the boot that is alive. So the agent enrols anew to find out, and a delayed packet
        does not end a wanted agent. A second 410 within `SUPERSEDED_AGAIN_S` is final.
        """
        superseded_s: float | None = None
        while True:
            boot = new_boot()
            try:
                await boot.enrol()
            except Gone:
                return
            try:
                await boot.run()
            except Gone:
                now_s = time.monotonic()
                if superseded_s is not None and now_s - superseded_s < SUPERSEDED_AGAIN_S:
                    return
                superseded_s = now_s
                _log.warning("boot_superseded")
