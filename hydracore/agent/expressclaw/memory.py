"""How much of a conversation a model is reminded of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: At most this many messages of the past, and this many tokens by our own estimate.
MEMORY_MAX_MESSAGES = 60
MEMORY_MAX_TOKENS = 12_000

#: What an endpoint adds to each message, and how long a token is on average in European languages.
_TOKENS_PER_MESSAGE = 4
_CHARS_PER_TOKEN = 4


class ChatMessage(NamedTuple):
    """One message, as the endpoint is told of it. `role`: system, user or assistant."""

    role: str
    content: str

    def __repr__(self) -> str:
        return f"ChatMessage(role={self.role!r})"


def remembered(past: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The end of `past` (in order) that fits; it begins with the user, as some models demand."""
    budget = MEMORY_MAX_TOKENS
    kept: list[ChatMessage] = []
    for said in reversed(past[-MEMORY_MAX_MESSAGES:]):
        budget -= message_tokens(said)
        if budget < 0:
            break
        kept.append(said)
    while kept and kept[-1].role != "user":
        kept.pop()
    return kept[::-1]


def alternating(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The same with neighbours of one role made one: a question without an answer stands before the next question."""
    merged: list[ChatMessage] = []
    for said in messages:
        if merged and merged[-1].role == said.role:
            merged[-1] = ChatMessage(said.role, f"{merged[-1].content}\n\n{said.content}")
        else:
            merged.append(said)
    return merged


def text_tokens(text: str) -> int:
    """An estimate, for memory and for calls that ended before the endpoint told its own figure."""
    return -(-len(text) // _CHARS_PER_TOKEN)


def message_tokens(said: ChatMessage) -> int:
    return _TOKENS_PER_MESSAGE + text_tokens(said.content)
