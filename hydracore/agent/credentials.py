"""Enrols the agent, and fetches, stores and acknowledges its secrets, again when the control plane refuses its key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

import msgspec
import structlog

from hydracore.agent import messages as m
from hydracore.agent.backoff import Backoff
from hydracore.agent.boot_file import BootFile
from hydracore.agent.control_plane import BadAnswer, Conflict, ControlPlane, Unauthorized, retry_transient
from hydracore.agent.errors import DiskWriteFailed, StateDamaged
from hydracore.agent.identity import Identity
from hydracore.agent.state import StateDir
from hydracore.json_input import JSON_ERRORS

_log = structlog.get_logger(__name__)
T = TypeVar("T")

_FILE = "secrets.json"

#: Waits after a refusal. They are longer than after an outage, as mostly only a person or a new attempt can help.
REFUSED_BASE_S = 1.0
REFUSED_CAP_S = 60.0


class StoredSecrets(msgspec.Struct, frozen=True):
    """`acknowledged`: whether the control plane knows that the agent has them. Then it does not hand them out again."""

    secrets: m.Secrets
    acknowledged: bool


def load_secrets(state: StateDir) -> StoredSecrets | None:
    """What an earlier boot stored, or None. Raises `StateDamaged`."""
    content = state.read(_FILE)
    if content is None:
        return None
    try:
        return msgspec.json.decode(content, type=StoredSecrets)
    except JSON_ERRORS:
        raise StateDamaged(state.path / _FILE) from None


def store_secrets(state: StateDir, secrets: m.Secrets, *, acknowledged: bool) -> None:
    state.write(_FILE, msgspec.json.encode(StoredSecrets(secrets=secrets, acknowledged=acknowledged)))


async def replace_refused_key(
    refused: str, request: m.SecretsRequest, *, state: StateDir, control_plane: ControlPlane, identity: Identity
) -> str:
    """Make one try to replace the agent key `refused`, and return the new key. The boot in `request` must be enrolled.

    Raises `ControlPlaneError`, `DiskWriteFailed` and `StateDamaged`.
    """
    stored = load_secrets(state)
    if stored is not None and stored.secrets.agent_key != refused:
        # An earlier try got and stored it, but perhaps not the answer to its acknowledgement.
        secrets = stored.secrets
    else:
        secrets = await control_plane.secrets(request, identity)
        # On disk first: once acknowledged, these secrets are not handed out again.
        store_secrets(state, secrets, acknowledged=False)
    await control_plane.acknowledge(secrets.agent_key, m.SecretsAck(boot_id=request.boot_id, key_id=secrets.key_id))
    store_secrets(state, secrets, acknowledged=True)
    return secrets.agent_key


class Credentials:
    """Enrolment and secrets of one boot. Call `enrol`, then `load_or_fetch`; from then on `current` is the secrets
    in force.

    `on_renewed` is called with secrets that have replaced refused ones.
    """

    def __init__(
        self,
        *,
        boot_file: BootFile,
        boot_id: UUID,
        identity: Identity,
        state: StateDir,
        control_plane: ControlPlane,
        on_renewed: Callable[[m.Secrets], None],
    ) -> None:
        self._boot_file = boot_file
        self._boot_id = boot_id
        self._identity = identity
        self._state = state
        self._control_plane = control_plane
        self._on_renewed = on_renewed
        self._current: m.Secrets | None = None
        #: The secrets that the next callback acknowledges.
        self._unacknowledged: m.Secrets | None = None
        #: Whether no earlier boot of this agent has acknowledged its secrets. Set by `load_or_fetch`.
        self.is_new = False
        self._renewing = asyncio.Lock()
        self._refusal_backoff = Backoff(base_s=REFUSED_BASE_S, cap_s=REFUSED_CAP_S)

    @property
    def current(self) -> m.Secrets:
        assert self._current is not None, "the credentials were not opened"
        return self._current

    async def enrol(self) -> None:
        """Enrol this boot. Raises `Gone`.

        A refused token is tried again, slowly: the control plane's clock or data may be wrong for a while. If the token
        really is no good, the control plane replaces this attempt at last, and answers 410.
        """
        request = m.EnrollRequest(
            instance_id=self._boot_file.instance_id,
            attempt=self._boot_file.attempt,
            token=self._boot_file.enrol_token,
            boot_id=self._boot_id,
            public_keys=self._identity.public_keys,
        )
        while True:
            try:
                await retry_transient(lambda: self._enrol_once(request))
            except (Unauthorized, Conflict) as error:
                await self._wait_after_refusal(error)
            else:
                self._refusal_backoff.reset()
                return

    async def load_or_fetch(self) -> m.Secrets:
        """The secrets on disk if the control plane knows of them, or else new ones. This boot must have enrolled.

        New ones are acknowledged by the first callback, which follows in a moment. That saves a request per new agent.
        """
        stored = load_secrets(self._state)
        self.is_new = stored is None or not stored.acknowledged
        if stored is not None and (stored.acknowledged or await self._acknowledge(stored.secrets)):
            self._current = stored.secrets
            return stored.secrets
        while (secrets := await self._fetch()) is None:
            pass
        self._refusal_backoff.reset()
        self._current = self._unacknowledged = secrets
        return secrets

    async def send_callback(self, callback: m.Callback) -> m.CallbackAccepted:
        """Send a callback with the agent key, as `call_with_key` does. It acknowledges the secrets if none has done so yet."""

        async def send(key: str) -> m.CallbackAccepted:
            secrets = self._unacknowledged
            if secrets is None or secrets.agent_key != key:
                return await self._control_plane.callback(key, callback)
            answer = await self._control_plane.callback(key, msgspec.structs.replace(callback, key_id=secrets.key_id))
            async with self._renewing:
                # Other secrets may have replaced these while the answer was on its way.
                if self._unacknowledged is secrets:
                    store_secrets(self._state, secrets, acknowledged=True)
                    self._unacknowledged = None
            return answer

        return await self.call_with_key(send)

    async def call_with_key(self, request: Callable[[str], Awaitable[T]]) -> T:
        """Make a request that shows the agent key; when the key is refused, get a fresh one and make it again."""
        while True:
            secrets = self.current
            try:
                return await request(secrets.agent_key)
            except Unauthorized:
                await self._renew(refused=secrets)

    async def _renew(self, *, refused: m.Secrets) -> None:
        """Make one try to replace `refused`. Of several callers at once the first one does it; the others find it done.

        If it fails, the refused secrets stay, and the caller tries them again: a control plane that refuses a key, and
        says that the agent has its secrets already, contradicts itself, and either answer may be the one that changes.
        """
        async with self._renewing:
            if self.current is not refused:
                return
            _log.warning("agent_key_refused", key_id=refused.key_id)
            # The new secrets overwrite these on disk, and are acknowledged by a request instead of a callback.
            self._unacknowledged = None
            secrets = await self._fetch()
            # The old ones stay in force until the control plane knows that the agent has these.
            if secrets is not None and await self._acknowledge(secrets):
                self._refusal_backoff.reset()
                self._current = secrets
                self._on_renewed(secrets)

    async def _fetch(self) -> m.Secrets | None:
        """Fetch secrets and store them. Returns None after a refusal and a wait, which is longer each time."""
        request = m.SecretsRequest(
            instance_id=self._boot_file.instance_id, attempt=self._boot_file.attempt, boot_id=self._boot_id
        )
        try:
            secrets = await retry_transient(lambda: self._control_plane.secrets(request, self._identity))
        except Conflict as error:
            await self._wait_after_refusal(error)
            return None
        except Unauthorized as error:
            # The signature is good, so the control plane does not know the boot, as after its restore.
            await self._wait_after_refusal(error)
            await self.enrol()
            return None
        # On disk first: once acknowledged, these secrets are not handed out again.
        store_secrets(self._state, secrets, acknowledged=False)
        return secrets

    async def _acknowledge(self, secrets: m.Secrets) -> bool:
        """Tell the control plane that these secrets are on disk. Returns False if it refuses them."""
        ack = m.SecretsAck(boot_id=self._boot_id, key_id=secrets.key_id)
        try:
            await retry_transient(lambda: self._control_plane.acknowledge(secrets.agent_key, ack))
        except (Unauthorized, Conflict) as error:
            await self._wait_after_refusal(error)
            return False
        try:
            store_secrets(self._state, secrets, acknowledged=True)
        except DiskWriteFailed as refusal:
            # The secrets are on disk, and in force. A later boot acknowledges them once more.
            _log.warning("acknowledgement_not_kept", key_id=secrets.key_id, what=refusal.what)
        return True

    async def _enrol_once(self, request: m.EnrollRequest) -> None:
        answer = await self._control_plane.enroll(request)
        if (answer.instance_id, answer.attempt, answer.boot_id) != (
            request.instance_id,
            request.attempt,
            request.boot_id,
        ):
            raise BadAnswer("enroll", "200 for another boot")

    async def _wait_after_refusal(self, error: Unauthorized | Conflict) -> None:
        wait_s = self._refusal_backoff.next_wait_s()
        _log.warning("control_plane_refuses", call=error.call, what=error.what, wait_s=round(wait_s, 2))
        await asyncio.sleep(wait_s)
