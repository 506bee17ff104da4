"""Chooses how much of a conversation is sent to the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: The most past messages that are sent, and the most tokens of them, by our own estimate.
CONTEXT_MESSAGES_MAX = 60
CONTEXT_TOKENS_MAX = 12_000

#: Tokens that an endpoint adds to each message, and the average length of a token in European languages.
_TOKENS_PER_MESSAGE = 4
_CHARS_PER_TOKEN = 4


class ChatMessage(NamedTuple):
    """One message as it is sent to the endpoint. `role`: system, user or assistant."""

    role: str
    content: str

    def __repr__(self) -> str:
        return f"ChatMessage(role={self.role!r})"


def latest_that_fit(past: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The latest messages of `past` (in order) that fit. They begin with one of the user, as some models require."""
    budget = CONTEXT_TOKENS_MAX
    kept: list[ChatMessage] = []
    for message in reversed(past[-CONTEXT_MESSAGES_MAX:]):
        budget -= estimate_message_tokens(message)
        if budget < 0:
            break
        kept.append(message)
    while kept and kept[-1].role != "user":
        kept.pop()
    return kept[::-1]


def merge_same_role(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Join neighbours of the same role, such as a question that was never answered and the next question."""
    merged: list[ChatMessage] = []
    for message in messages:
        if merged and merged[-1].role == message.role:
            merged[-1] = ChatMessage(message.role, f"{merged[-1].content}\n\n{message.content}")
        else:
            merged.append(message)
    return merged


def estimate_text_tokens(text: str) -> int:
    """An estimate, for choosing past messages, and for calls that ended before the endpoint sent its own figure."""
    return -(-len(text) // _CHARS_PER_TOKEN)


def estimate_message_tokens(message: ChatMessage) -> int:
    return _TOKENS_PER_MESSAGE + estimate_text_tokens(message.content)
