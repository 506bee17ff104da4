"""The messages of the agent's API about chats and conversations. The control plane uses the same structs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec

from hydracore.agent.messages import Count, Ignored, ReportedError

#: Ids of conversations, whether the agent, a caller or a channel made them up.
CONVERSATION_ID_PATTERN: Final = r"^[A-Za-z0-9:_-]{1,128}\Z"
ConversationId = Annotated[str, msgspec.Meta(pattern=CONVERSATION_ID_PATTERN)]

#: The prefix of a Telegram conversation's id. Telegram's number of the chat, which mostly is a person's, follows it.
TELEGRAM_CONVERSATION = "telegram:"

#: The longest message that is answered, in characters.
MESSAGE_CHARS_MAX = 8000

#: The longest `Idempotency-Key` and end user, in characters.
NAME_CHARS_MAX = 200


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /api/chat`. Without `conversation_id` a conversation begins. `end_user`: for whom, if not the owner."""

    message: Annotated[str, msgspec.Meta(min_length=1)]
    conversation_id: ConversationId | None = None
    end_user: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX)] | None = None

    def __repr__(self) -> str:
        return f"ChatRequest(conversation_id={self.conversation_id!r})"


class TokenUsage(msgspec.Struct, frozen=True, kw_only=True):
    """`cost_usd`: a decimal number of US dollars."""

    prompt_tokens: int
    completion_tokens: int
    cost_usd: str


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a chat: the whole answer, the model that gave it, and what it cost."""

    conversation_id: str
    message: str
    model: str
    usage: TokenUsage

    def __repr__(self) -> str:
        return f"ChatAnswer(conversation_id={self.conversation_id!r}, model={self.model!r})"


class AgentProblem(msgspec.Struct, frozen=True):
    """The body of an error answer. `code` is stable and for programs, `detail` one line for people, without secrets."""

    detail: str
    code: str


class ConversationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """`preview`: the beginning of the latest message."""

    id: str
    created_at: datetime
    updated_at: datetime
    message_count: int
    preview: str


class Conversations(msgspec.Struct, frozen=True):
    """Newest first."""

    conversations: tuple[ConversationSummary, ...]


class ConversationMessage(msgspec.Struct, frozen=True, kw_only=True):
    """`model` and `usage` are those of an answer, null otherwise."""

    role: Literal["user", "assistant"]
    content: str
    created_at: datetime
    model: str | None = None
    usage: TokenUsage | None = None

    def __repr__(self) -> str:
        return f"ConversationMessage(role={self.role!r})"


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created_at: datetime
    updated_at: datetime
    messages: tuple[ConversationMessage, ...]


class PushedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `PUT /api/config`."""

    config_version: Annotated[int, msgspec.Meta(ge=0)]
    runtime: dict[str, Any]

    def __repr__(self) -> str:
        return f"PushedConfig(config_version={self.config_version})"


class RunningConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to `PUT /api/config`: the version that the agent runs, null while it runs none, and
    the parts of it that are not used."""

    config_version: Count | None
    ignored: tuple[Ignored, ...] = ()


class Updates(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /api/updates/apply`: a configuration, and whether to restart the runtime with it."""

    config_version: Annotated[int, msgspec.Meta(ge=0)]
    runtime: dict[str, Any]
    restart: bool = False

    def __repr__(self) -> str:
        return f"Updates(config_version={self.config_version}, restart={self.restart})"


class UpdatesApplied(msgspec.Struct, frozen=True, kw_only=True):
    """`drained`: whether no chat was cut short. `error`: what keeps the runtime from working as it should."""

    config_version: Count
    restarted: bool
    drained: bool
    skills_loaded: tuple[str, ...]
    error: ReportedError | None = None
