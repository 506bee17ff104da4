"""`/v1/instances/{id}/consent`: whether staff may read the owner's conversations. Only the owner decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from events.commands import ChangeConsent, RecordConversationsAccess
from events.keys import Keyring
from events.state import Instance
from hydracore.agent.chat_messages import TELEGRAM_CONVERSATION
from hydracore.api import use_schemas as s
from hydracore.api.access import is_owner
from hydracore.api.changes import Changes, RequestContext
from hydracore.api.errors import Forbidden
from hydracore.api.operations import operation
from hydracore.api.validation import Incoming
from hydracore.auth import Principal
from hydracore.clock import NowMs

NO_CONSENT = "The owner has not allowed others to read the conversations"

#: Hex digits of a Telegram chat's digest that are kept: enough to tell chats apart.
CHAT_DIGITS: Final = 32


async def record_access(changes: Changes, context: RequestContext, access: RecordConversationsAccess) -> None:
    """Record that a caller who is not the owner reads conversations. Raises `Forbidden` unless the owner allows it."""

    async def command(state: Instance) -> RecordConversationsAccess:
        require_reader(context.who, state)
        return access

    await changes.change(context, command)


def logged_conversation_id(keyring: Keyring, instance_id: UUID, conversation_id: str) -> str:
    """The id of a conversation in the log.

    Ids that callers have chosen are kept as they are. A Telegram chat's number is replaced by a keyed digest per
    instance, like end users' ids, because the log keeps it for ever.
    """
    if not conversation_id.startswith(TELEGRAM_CONVERSATION):
        return conversation_id
    digest = keyring.fingerprint(f"conversation of {instance_id}: {conversation_id}".encode()).hex()
    return TELEGRAM_CONVERSATION + digest[:CHAT_DIGITS]


def require_reader(who: Principal, state: Instance) -> None:
    """Raises `Forbidden` where the caller may not read the conversations."""
    if not is_owner(who, state) and not state.consent_debug_access:
        raise Forbidden(NO_CONSENT)


@dataclass(frozen=True, kw_only=True)
class Consent:
    changes: Changes
    now_ms: NowMs

    @operation(
        "PATCH",
        "/v1/instances/{instance_id}/consent",
        "Toggle conversation debug access",
        answer=s.ConsentResponse,
        errors=(403, 404, 409),
    )
    async def set_consent(
        self, who: Principal, incoming: Incoming, instance_id: UUID, body: s.UpdateConsent
    ) -> s.ConsentResponse:
        async def command(state: Instance) -> ChangeConsent:
            if not is_owner(who, state):
                raise Forbidden("Only the owner decides who may read the conversations")
            return ChangeConsent(at_ms=self.now_ms(), granted=body.consent_debug_access)

        outcome = await self.changes.change(RequestContext(who, incoming, instance_id), command)
        granted = outcome.state.consent_debug_access
        return s.ConsentResponse(
            consent_debug_access=granted,
            instance_id=instance_id,
            message="Staff may read the conversations" if granted else "Only the owner may read the conversations",
        )
