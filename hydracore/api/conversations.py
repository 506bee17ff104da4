"""`/v1/instances/{id}/conversations`: conversations, read from the agent. The control plane stores none of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, Final
from uuid import UUID

from msgspec import Meta

from events.commands import RecordConversationsAccess
from events.keys import Keyring
from events.master_keys import MasterKeys
from events.state import Instance
from hydracore.agent.chat_messages import CONVERSATION_ID_PATTERN
from hydracore.agent_client import AgentBadAnswer, AgentClient
from hydracore.api.access import is_owner
from hydracore.api.agent_link import agent_errors_translated, require_address
from hydracore.api.changes import Changes, RequestContext
from hydracore.api.concurrency_limiter import ConcurrencyLimiter
from hydracore.api.consent import logged_conversation_id, record_access, require_reader
from hydracore.api.errors import NotFound
from hydracore.api.operations import Answer, operation
from hydracore.api.validation import Incoming
from hydracore.auth import Principal
from hydracore.clock import NowMs

#: The most seconds that an agent may take to read its conversations.
READ_TIMEOUT_S: Final = 10.0

#: The most reads per instance and process at a time. Each may hold as much memory as the longest conversation.
READS_MAX: Final = 8

Limit = Annotated[int, Meta(ge=1, le=100)]
#: In the form for the OpenAPI document, whose patterns lack `\Z`.
ConversationId = Annotated[str, Meta(pattern=CONVERSATION_ID_PATTERN.replace(r"\Z", "$"), max_length=128)]


@dataclass(frozen=True, kw_only=True)
class Conversations:
    changes: Changes
    agent_client: AgentClient
    keyring: Keyring
    master_keys: MasterKeys
    now_ms: NowMs
    limiter: ConcurrencyLimiter = field(default_factory=lambda: ConcurrencyLimiter("reads of its conversations"))

    @operation(
        "GET",
        "/v1/instances/{instance_id}/conversations",
        "Proxy conversations",
        answer=Any,
        errors=(403, 404, 409, 502, 504),
    )
    async def list_conversations(
        self, who: Principal, incoming: Incoming, instance_id: UUID, limit: Limit = 20
    ) -> Answer:
        state = await self._readable(who, instance_id)
        address = require_address(state, master_keys=self.master_keys)
        with agent_errors_translated(), self.limiter.slot(instance_id, limit=READS_MAX):
            found = await self.agent_client.conversations(address, limit, timeout_s=READ_TIMEOUT_S)
            await self._record_access(RequestContext(who, incoming, instance_id), state, None)
        return Answer(HTTPStatus.OK, found)

    @operation(
        "GET",
        "/v1/instances/{instance_id}/conversations/{conversation_id}",
        "Proxy conversation detail",
        answer=Any,
        errors=(403, 404, 409, 502, 504),
    )
    async def get_conversation(
        self, who: Principal, incoming: Incoming, instance_id: UUID, conversation_id: ConversationId
    ) -> Answer:
        state = await self._readable(who, instance_id)
        address = require_address(state, master_keys=self.master_keys)
        with agent_errors_translated(), self.limiter.slot(instance_id, limit=READS_MAX):
            try:
                found = await self.agent_client.conversation(address, conversation_id, timeout_s=READ_TIMEOUT_S)
            except AgentBadAnswer as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    raise NotFound("Conversation not found") from error
                raise
            await self._record_access(RequestContext(who, incoming, instance_id), state, conversation_id)
        return Answer(HTTPStatus.OK, found)

    async def _readable(self, who: Principal, instance_id: UUID) -> Instance:
        state = await self.changes.load(who, instance_id)
        require_reader(who, state)
        return state

    async def _record_access(self, context: RequestContext, state: Instance, conversation_id: str | None) -> None:
        """Record an access by others than the owner, before the answer is sent. Raises `Forbidden` without consent."""
        if not is_owner(context.who, state):
            logged_id = (
                None if conversation_id is None else logged_conversation_id(self.keyring, state.id, conversation_id)
            )
            access = RecordConversationsAccess(at_ms=self.now_ms(), conversation_id=logged_id)
            await record_access(self.changes, context, access)
