"""Which agent is calling: its key is checked against the master key first and against what is issued now second."""

from __future__ import annotations

import hmac
from typing import NamedTuple
from uuid import UUID

from events.lifecycle import PROVISIONING, RUNNING
from hydracore.api.errors import Gone, Unauthorized
from hydracore.api.validation import RawHeaders
from hydracore.tokens import agent_key, hash_token, parse_agent_key
from projections.queries import Queries

GONE = "This instance is over; the agent must stop"


class CallingAgent(NamedTuple):
    """An agent that showed the key in force."""

    instance_id: UUID
    key_id: UUID

    @property
    def actor(self) -> str:
        return f"agent:{self.instance_id}"


class AgentGate:
    """Lets agents in by their key."""

    def __init__(self, queries: Queries, *, master_key: bytes) -> None:
        self._queries = queries
        self._master_key = master_key

    async def authenticate(self, headers: RawHeaders) -> CallingAgent:
        """Raises `Unauthorized` for a key that is not, or no longer, in force, and `Gone` when the instance is over.

        A key that we never issued is refused without a look at the database. One that we did issue is told when its
        instance is over, although it was revoked with it: that is how an agent learns that it must stop.
        """
        shown = _bearer(headers)
        claimed = parse_agent_key(shown)
        if claimed is None:
            raise Unauthorized("The agent key is missing or malformed")
        genuine = agent_key(self._master_key, claimed.instance_id, claimed.key_id)
        if not hmac.compare_digest(shown.encode(), genuine.encode()):
            raise Unauthorized("The agent key is wrong")
        row = await self._queries.agent_key(claimed.instance_id)
        if row is None:
            raise Unauthorized("The agent key is wrong")
        if row.status not in {PROVISIONING, RUNNING}:
            raise Gone(GONE)
        if row.key_hash is None or not hmac.compare_digest(bytes.fromhex(row.key_hash), hash_token(shown)):
            raise Unauthorized("The agent key is no longer in force")
        return CallingAgent(claimed.instance_id, claimed.key_id)


def _bearer(headers: RawHeaders) -> str:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return ""
