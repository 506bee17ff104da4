"""The agent's standing with the control plane: enrolled, with a key that is on disk, acknowledged and accepted."""

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
from hydracore.agent.control_plane import BadAnswer, Conflict, ControlPlane, Unauthorized, insist
from hydracore.agent.errors import DiskRefuses, StateDamaged
from hydracore.agent.identity import Identity
from hydracore.agent.state import StateDir
from hydracore.reading import UNREADABLE

_log = structlog.get_logger(__name__)
T = TypeVar("T")

_FILE = "secrets.json"

#: Waits after a plain no, which only a person or a new attempt can turn into a yes.
REFUSED_BASE_S = 1.0
REFUSED_CAP_S = 60.0


class StoredSecrets(msgspec.Struct, frozen=True):
    """`acknowledged`: the control plane has said that it knows we have them, and will not hand them out again."""

    secrets: m.Secrets
    acknowledged: bool


def load_secrets(state: StateDir) -> StoredSecrets | None:
    """What an earlier boot stored, or None. Raises `StateDamaged`."""
    content = state.read(_FILE)
    if content is None:
        return None
    try:
        return msgspec.json.decode(content, type=StoredSecrets)
    except UNREADABLE:
        raise StateDamaged(state.path / _FILE) from None


def store_secrets(state: StateDir, secrets: m.Secrets, *, acknowledged: bool) -> None:
    state.write(_FILE, msgspec.json.encode(StoredSecrets(secrets=secrets, acknowledged=acknowledged)))


async def replace_refused_key(
    refused: str, request: m.SecretsRequest, *, state: StateDir, control_plane: ControlPlane, identity: Identity
) -> str:
    """One try to get the key that replaces `refused`, for a boot that has enrolled. Raises `ControlPlaneError`."""
    stored = load_secrets(state)
    if stored is not None and stored.secrets.agent_key != refused:
        # An earlier try got it, and perhaps lost the answer to the acknowledgement.
        secrets = stored.secrets
    else:
        secrets = await control_plane.secrets(request, identity)
        # On disk first: once acknowledged, these secrets are not handed out again.
        store_secrets(state, secrets, acknowledged=False)
    await control_plane.acknowledge(secrets.agent_key, m.SecretsAck(boot_id=request.boot_id, key_id=secrets.key_id))
    store_secrets(state, secrets, acknowledged=True)
    return secrets.agent_key


class Credentials:
    """Enrolment and secrets of one boot. `open` before anything else; then `current` is what counts.

    `on_renewed` is called with the secrets that replaced refused ones.
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
        #: What the first callback acknowledges.
        self._unacknowledged: m.Secrets | None = None
        #: No earlier boot of this agent had secrets that the control plane knew to be here.
        self.is_new = False
        self._renewing = asyncio.Lock()
        self._refused = Backoff(base_s=REFUSED_BASE_S, cap_s=REFUSED_CAP_S)

    @property
    def current(self) -> m.Secrets:
        assert self._current is not None, "the credentials were not opened"
        return self._current

    async def enrol(self) -> None:
        """Make this boot known. A refused token is shown again, slowly: the control plane's clock or memory may have been
        wrong, and if it was not, it will replace this attempt and answer 410."""
        request = m.EnrollRequest(
            instance_id=self._boot_file.instance_id,
            attempt=self._boot_file.attempt,
            token=self._boot_file.enrol_token,
            boot_id=self._boot_id,
            public_keys=self._identity.public_keys,
        )
        while True:
            try:
                await insist(lambda: self._enrol_once(request))
            except (Unauthorized, Conflict) as error:
                await self._wait_after_refusal(error)
            else:
                self._refused.reset()
                return

    async def open(self) -> m.Secrets:
        """Get a key in force: the one on disk, or a fresh one. This boot must have enrolled.

        Fresh ones are acknowledged with the first callback, which comes in a moment: a request less for each new agent.
        """
        stored = load_secrets(self._state)
        self.is_new = stored is None or not stored.acknowledged
        if stored is not None and (stored.acknowledged or await self._acknowledge(stored.secrets)):
            self._current = stored.secrets
            return stored.secrets
        while (secrets := await self._fetch()) is None:
            pass
        self._refused.reset()
        self._current = self._unacknowledged = secrets
        return secrets

    async def report(self, callback: m.Callback) -> m.CallbackAccepted:
        """Send a callback, as `call` does; with secrets that are not acknowledged yet, it acknowledges them."""

        async def send(key: str) -> m.CallbackAccepted:
            secrets = self._unacknowledged
            if secrets is None or secrets.agent_key != key:
                return await self._control_plane.callback(key, callback)
            answer = await self._control_plane.callback(key, msgspec.structs.replace(callback, key_id=secrets.key_id))
            async with self._renewing:
                # The answer may be late, and others have taken the place of these secrets meanwhile.
                if self._unacknowledged is secrets:
                    store_secrets(self._state, secrets, acknowledged=True)
                    self._unacknowledged = None
            return answer

        return await self.call(send)

    async def call(self, request: Callable[[str], Awaitable[T]]) -> T:
        """Make a request that shows the agent key; when the key is refused, get a fresh one and make it again."""
        while True:
            secrets = self.current
            try:
                return await request(secrets.agent_key)
            except Unauthorized:
                await self._renew(refused=secrets)

    async def _renew(self, *, refused: m.Secrets) -> None:
        """One try to replace `refused`, by whoever notices first; the others find it done.

        Without success the refused secrets stay and the caller tries them again: a control plane that says "refused" and
        "you have them" in turn contradicts itself, and either may be the one to change its mind.
        """
        async with self._renewing:
            if self.current is not refused:
                return
            _log.warning("agent_key_refused", key_id=refused.key_id)
            # What comes is acknowledged on its own, and first stored over these.
            self._unacknowledged = None
            secrets = await self._fetch()
            # The agent works under the old ones until the control plane knows that it has these.
            if secrets is not None and await self._acknowledge(secrets):
                self._refused.reset()
                self._current = secrets
                self._on_renewed(secrets)

    async def _fetch(self) -> m.Secrets | None:
        """One round of asking and storing. None after a refusal and a wait, longer each time."""
        request = m.SecretsRequest(
            instance_id=self._boot_file.instance_id, attempt=self._boot_file.attempt, boot_id=self._boot_id
        )
        try:
            secrets = await insist(lambda: self._control_plane.secrets(request, self._identity))
        except Conflict as error:
            await self._wait_after_refusal(error)
            return None
        except Unauthorized as error:
            # Our signature is good, so it is the boot that is unknown, as after a restore of the control plane.
            await self._wait_after_refusal(error)
            await self.enrol()
            return None
        # On disk first: once acknowledged, these secrets are not handed out again.
        store_secrets(self._state, secrets, acknowledged=False)
        return secrets

    async def _acknowledge(self, secrets: m.Secrets) -> bool:
        """Tell the control plane that these secrets are on disk. False when it knows better ones."""
        ack = m.SecretsAck(boot_id=self._boot_id, key_id=secrets.key_id)
        try:
            await insist(lambda: self._control_plane.acknowledge(secrets.agent_key, ack))
        except (Unauthorized, Conflict) as error:
            await self._wait_after_refusal(error)
            return False
        try:
            store_secrets(self._state, secrets, acknowledged=True)
        except DiskRefuses as refusal:
            # They are on disk, and in force. A later boot acknowledges them once more.
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
        wait_s = self._refused.next_s()
        _log.warning("control_plane_refuses", call=error.call, what=error.what, wait_s=round(wait_s, 2))
        await asyncio.sleep(wait_s)
