"""Give agents new tokens after the master key was replaced, or after a restore.

Agents' tokens are derived from the master key (`hydracore.tokens`). A survey tells how many agents still hold tokens of a former
master key; reissuing revokes the keys of those agents. An agent whose key is revoked fetches new tokens by itself, as after
`rotate-key` (docs/agent.md). Until it has acknowledged them, the control plane calls it with the old control token.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Final, Literal, NamedTuple
from uuid import UUID, uuid4

import msgspec
from psycopg_pool import AsyncConnectionPool

from events import types as e
from events.codec import tag_of
from events.commands import RotateAgentKey
from events.errors import EventUnreadable, LogCorrupted, VersionConflict
from events.folding import EventColumns, fold_page, version_of
from events.ids import lane_of
from events.lifecycle import DELETING, PROVISIONING, RUNNING
from events.master_keys import MasterKeys
from events.record import Origin
from events.retries import run
from events.sql import Statements
from events.state import Attempt, Instance
from events.store import EventStore
from hydracore.clock import NowMs
from hydracore.tokens import master_key_of_agent_key, master_key_of_enrol_token

_SQL = Statements("hydracore", "reissuing.sql")
_WITH_AGENTS = _SQL["with_agents"]
_COUNT = _SQL["count_with_agents"]
_EVENTS_WITHOUT = _SQL["events_without"]

#: Instances per page.
PAGE_SIZE = 500

#: Events of one instance per page.
EVENTS_PAGE_SIZE = 1_000

#: Events that are appended again and again while an instance is used. `key_status` does not depend on them, and they make up most
#: of a long history, so they are neither read nor folded here.
IRRELEVANT_EVENTS: Final = (
    *(e.BootstrapReported, e.HealthChanged, e.UsageRecorded, e.ConversationsAccessed, e.ConsentChanged),
    *(e.ConfigChanged, e.PlatformConfigPatched, e.ModelPolicyChanged, e.UpdatesApplied),
)
_IRRELEVANT_TAGS: Final = [tag_of(kind) for kind in IRRELEVANT_EVENTS]

#: Which master key an instance's tokens were derived from.
#:
#: - `none`: it has no tokens, or will not use them again.
#: - `present`: the present master key.
#: - `former`: one that the configuration still names as a former master key.
#: - `unknown`: one that the configuration does not name.
#: - `awaited`: the agent's key was revoked, but the agent has not fetched new tokens yet and holds older ones.
#: - `passing`: tokens of another master key than the present one are needed once more, because its server is being created or its
#:   agent is being drained.
#: - `unreadable`: its stream cannot be read.
KeyStatus = Literal["none", "present", "former", "unknown", "awaited", "passing", "unreadable"]

#: Tokens that have to be replaced.
STALE: Final[tuple[Literal["former"], Literal["unknown"]]] = ("former", "unknown")


class _NotDue(Exception):
    """The key of the instance does not have to be replaced any more."""

    def __init__(self, key_status: KeyStatus) -> None:
        super().__init__(key_status)
        self.key_status: KeyStatus = key_status


class AgentTokens(msgspec.Struct, kw_only=True):
    """The number of instances of each `KeyStatus` except `none`."""

    present: int = 0
    former: int = 0
    unknown: int = 0
    awaited: int = 0
    passing: int = 0
    unreadable: int = 0

    def add(self, status: KeyStatus) -> None:
        if status != "none":
            setattr(self, status, getattr(self, status) + 1)


class Reissued(NamedTuple):
    """What a reissue did.

    `revoked`: keys that it revoked. `missed`: instances that changed too often to revoke theirs; a second run may succeed. `agents`:
    the key statuses of all instances afterwards.
    """

    revoked: int
    missed: int
    agents: AgentTokens


def key_status(state: Instance, master_keys: MasterKeys) -> KeyStatus:
    """Which master key the tokens of the instance were derived from."""
    agent, attempt = state.agent, state.attempt
    if state.status not in {PROVISIONING, RUNNING, DELETING} or "drained" in state.teardown_done:
        return "none"
    if agent is None:
        return "passing" if attempt is not None and _may_still_be_created(state.id, attempt, master_keys) else "none"
    held_status = _derived_from(state.id, agent.control_key_id, agent.control_key_hash, master_keys)
    if state.status == DELETING:
        return "none" if held_status is None else "present" if held_status == "present" else "passing"
    in_force_status = _derived_from(state.id, agent.key_id, agent.key_hash, master_keys)
    if in_force_status in STALE:
        return in_force_status
    if held_status in STALE:
        return "awaited"
    return in_force_status or held_status or "none"


def has_key(state: Instance, _: MasterKeys) -> bool:
    """Whether the agent has a key in force. Once that is revoked, the agent fetches new tokens and its configuration."""
    return state.status in {PROVISIONING, RUNNING} and state.agent is not None and state.agent.key_id is not None


def is_stale(state: Instance, master_keys: MasterKeys) -> bool:
    """Whether the agent's key was derived from another master key than the present one."""
    return key_status(state, master_keys) in STALE


async def count(pool: AsyncConnectionPool) -> int:
    """The number of instances that a survey or a reissue visits. Raises `StoreUnavailable`."""
    ((number,),) = await run(pool, _COUNT)
    return number


class Reissuer:
    """Surveys agents' tokens, and revokes agents' keys."""

    def __init__(
        self,
        pool: AsyncConnectionPool,
        store: EventStore,
        master_keys: MasterKeys,
        *,
        actor: str,
        now_ms: NowMs,
    ) -> None:
        self._pool = pool
        self._store = store
        self._master_keys = master_keys
        self._actor = actor
        self._now_ms = now_ms
        self._correlation_id = uuid4()

    async def survey(self, progress: Callable[[int], None]) -> AgentTokens:
        """The key statuses of all instances. Calls `progress` with 1 for each. Raises `StoreUnavailable`."""
        found = AgentTokens()
        async for instance_id in _instances_with_agents(self._pool):
            _, status = await self._load(instance_id)
            found.add(status)
            progress(1)
        return found

    async def reissue(
        self, progress: Callable[[int], None], *, is_due: Callable[[Instance, MasterKeys], bool] = is_stale
    ) -> Reissued:
        """Revoke the keys of all instances for which `is_due` holds. Calls `progress` with 1 for each instance.

        Idempotent: an instance whose key was revoked is not due before its agent has fetched another key. Raises `StoreUnavailable`.
        """
        revoked, missed, agents = 0, 0, AgentTokens()
        async for instance_id in _instances_with_agents(self._pool):
            outcome, status = await self._revoke(instance_id, is_due)
            revoked += outcome == "revoked"
            missed += outcome == "missed"
            agents.add(status)
            progress(1)
        return Reissued(revoked, missed, agents)

    async def _revoke(
        self, instance_id: UUID, is_due: Callable[[Instance, MasterKeys], bool]
    ) -> tuple[Literal["revoked", "missed", "left"], KeyStatus]:
        """What was done with one instance, and its key status afterwards."""
        loaded, status = await self._load(instance_id)
        if loaded is None or not is_due(loaded, self._master_keys):
            return "left", status
        origin = Origin(actor=self._actor, command_id=uuid4(), correlation_id=self._correlation_id)

        async def rotation(state: Instance | None) -> RotateAgentKey:
            # The state may be newer than the one that was loaded: a key that was issued meanwhile need not be due.
            if state is None or not is_due(state, self._master_keys):
                raise _NotDue("none" if state is None else key_status(state, self._master_keys))
            return RotateAgentKey(at_ms=self._now_ms())

        try:
            outcome = await self._store.change(instance_id, rotation, origin)
        except _NotDue as not_due:
            return "left", not_due.key_status
        except VersionConflict:
            return "missed", status
        except (LogCorrupted, EventUnreadable):
            return "left", "unreadable"
        return "revoked", key_status(outcome.state, self._master_keys)

    async def _load(self, instance_id: UUID) -> tuple[Instance | None, KeyStatus]:
        """The instance, folded from its relevant events only, and its key status."""
        try:
            state = await self._fold_relevant(instance_id)
        except (LogCorrupted, EventUnreadable):
            # A broken stream must not prevent the others from being visited; `audit verify` shows what is wrong with it.
            return None, "unreadable"
        return state, "none" if state is None else key_status(state, self._master_keys)

    async def _fold_relevant(self, instance_id: UUID) -> Instance | None:
        """The instance folded from all of its events except `IRRELEVANT_EVENTS`. Its version counts the folded events only."""
        lane, state, after = lane_of(instance_id), None, 0
        while True:
            page: list[EventColumns] = []
            bounds = {
                "lane": lane,
                "stream_id": instance_id,
                "after": after,
                "without": _IRRELEVANT_TAGS,
                "limit": EVENTS_PAGE_SIZE,
            }
            for seq, version, *event, place in await run(self._pool, _EVENTS_WITHOUT, bounds):
                if version != place:
                    raise LogCorrupted(lane, seq, f"stream {instance_id} has {version} where {place} must be")
                page.append((seq, version_of(state) + len(page) + 1, *event))
                after = version
            state = fold_page(state, page, stream_id=instance_id)
            if len(page) < EVENTS_PAGE_SIZE:
                return state


def _derived_from(
    instance_id: UUID, key_id: UUID | None, key_hash: str | None, master_keys: MasterKeys
) -> Literal["present", "former", "unknown"] | None:
    """Which master key the agent key of this hash was derived from. None: there is no key."""
    if key_id is None or key_hash is None:
        return None
    master_key = master_key_of_agent_key(master_keys, instance_id, key_id, key_hash=key_hash)
    if master_key is None:
        return "unknown"
    return "present" if master_key == master_keys.present else "former"


def _may_still_be_created(instance_id: UUID, attempt: Attempt, master_keys: MasterKeys) -> bool:
    """Whether a server may still be created whose enrol token was not derived from the present master key."""
    if not attempt.may_have_server or attempt.server_id is not None or attempt.failure is not None:
        return False
    nonce, token_hash = attempt.enrol_nonce, attempt.enrol_token_hash
    assert nonce is not None, "an intent has a nonce"
    assert token_hash is not None, "an intent has the hash of its token"
    master_key = master_key_of_enrol_token(master_keys, instance_id, attempt.number, nonce, token_hash=token_hash)
    return master_key != master_keys.present


async def _instances_with_agents(pool: AsyncConnectionPool) -> AsyncGenerator[UUID]:
    lane, last = -1, UUID(int=0)
    while rows := await run(pool, _WITH_AGENTS, {"lane": lane, "id": last, "limit": PAGE_SIZE}):
        for _, instance_id in rows:
            yield instance_id
        lane, last = rows[-1]
