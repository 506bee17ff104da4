"""Authenticates agents. A key is checked against the master keys first, and then against the key in force."""

from __future__ import annotations

import hmac
from typing import NamedTuple
from uuid import UUID

from events.errors import AgentDraining
from events.lifecycle import DELETING, PROVISIONING, RUNNING
from events.master_keys import MasterKeys
from events.state import Agent
from events.store import EventStore
from hydracore.api.errors import Gone, Unauthorized
from hydracore.api.raw_request import RawHeaders
from hydracore.tokens import AgentKey, agent_key, hash_token, parse_agent_key
from projections.queries import AgentKeyRow, Queries

GONE = "This instance is over; the agent must stop"
NOT_IN_FORCE = "The agent key is no longer in force"


class CallingAgent(NamedTuple):
    """An agent that has presented the key in force."""

    instance_id: UUID
    key_id: UUID

    @property
    def actor(self) -> str:
        return f"agent:{self.instance_id}"


class ReportingAgent(CallingAgent):
    """An agent that reports usage or acknowledges its key. It may do so until its instance is drained."""


class AgentGate:
    """Authenticates agents by their key."""

    def __init__(self, queries: Queries, store: EventStore, *, master_keys: MasterKeys) -> None:
        self._queries = queries
        self._store = store
        self._master_keys = master_keys

    async def authenticate(self, headers: RawHeaders) -> CallingAgent:
        """The agent that presents its key.

        A key that was not derived from any of the master keys is refused without a query. If the instance is over, its
        agent gets `Gone` even though its key was revoked, so that it stops.

        Raises `Unauthorized` for a key that is not in force, `Gone` where the instance is over, and `AgentDraining`
        while the instance is being deleted and its chats may still end.
        """
        presented, claimed, row = await self._look_up_key(headers)
        if await self._draining_agent(presented, claimed, row) is not None:
            raise AgentDraining(claimed.instance_id)
        _require_in_force(presented, row)
        return CallingAgent(claimed.instance_id, claimed.key_id)

    async def authenticate_to_report(self, headers: RawHeaders) -> ReportingAgent:
        """The same, but during the drain it also accepts keys that the deletion has revoked, or that were issued since.

        The last chats have to be charged, too. A key that was rotated before the deletion is refused; the agent then
        fetches another.
        """
        presented, claimed, row = await self._look_up_key(headers)
        agent = await self._draining_agent(presented, claimed, row)
        if agent is None:
            _require_in_force(presented, row)
        elif claimed.key_id not in {agent.key_id, agent.leaving_key_id}:
            raise Unauthorized(NOT_IN_FORCE)
        return ReportingAgent(claimed.instance_id, claimed.key_id)

    async def _look_up_key(self, headers: RawHeaders) -> tuple[str, AgentKey, AgentKeyRow]:
        """The presented key, its ids, and the instance's row. Raises `Unauthorized` unless a master key derives it."""
        presented = _bearer_token(headers)
        claimed = parse_agent_key(presented)
        if claimed is None:
            raise Unauthorized("The agent key is missing or malformed")
        if (
            self._master_keys.find_key(presented, lambda each: agent_key(each, claimed.instance_id, claimed.key_id))
            is None
        ):
            raise Unauthorized("The agent key is wrong")
        row = await self._queries.agent_key(claimed.instance_id)
        if row is None:
            raise Unauthorized("The agent key is wrong")
        return presented, claimed, row

    async def _draining_agent(self, presented: str, claimed: AgentKey, row: AgentKeyRow) -> Agent | None:
        """The agent that presented the key, if its instance is being deleted and is not drained yet; otherwise None."""
        if row.status != DELETING:
            return None
        state = await self._store.load(claimed.instance_id)
        assert state is not None, "an agent's key is of an instance"
        agent = state.agent
        if agent is None or not state.is_draining:
            return None
        # Agents of earlier attempts have no chats. A key with the same id from another master key was never issued.
        issued = {
            agent.key_id: agent.key_hash,
            agent.control_key_id: agent.control_key_hash,
            agent.leaving_key_id: agent.leaving_key_hash,
        }
        return agent if _is_of_hash(presented, issued.get(claimed.key_id)) else None


def _require_in_force(presented: str, row: AgentKeyRow) -> None:
    if row.status not in {PROVISIONING, RUNNING}:
        raise Gone(GONE)
    if not _is_of_hash(presented, row.key_hash):
        raise Unauthorized(NOT_IN_FORCE)


def _is_of_hash(presented: str, key_hash: str | None) -> bool:
    """Whether `presented` has the hash `key_hash` (hex)."""
    return key_hash is not None and hmac.compare_digest(bytes.fromhex(key_hash), hash_token(presented))


def _bearer_token(headers: RawHeaders) -> str:
    """The presented key; empty where there is none, or more than one."""
    presented = [value.decode("latin-1") for name, value in headers if name == b"authorization"]
    scheme, _, token = presented[0].partition(" ") if len(presented) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else ""
