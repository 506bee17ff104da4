"""Chats over HTTP: `POST /api/chat`, answered whole or as a stream of events, and the conversations on disk."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, TypeVar

import msgspec

from hydracore.agent.api import Request, Response, Stream, problem
from hydracore.agent.chat_messages import (
    CONVERSATION_ID_PATTERN,
    MESSAGE_CHARS_MAX,
    NAME_CHARS_MAX,
    AgentProblem,
    ChatRequest,
    Conversations,
)
from hydracore.agent.chats import BadRequest, ChatError, MessageTooLong, OpenChat, Question
from hydracore.agent.expressclaw.turns import Turns
from hydracore.json_input import JSON_ERRORS
from hydracore.media_types import EVENT_STREAM

T = TypeVar("T")

CONVERSATIONS_LISTED: Final = 20
CONVERSATIONS_LISTED_MAX: Final = 200

#: The digits are bounded because `int` raises `ValueError` for some thousands of them.
_LIMIT: Final = re.compile(r"[0-9]{1,9}")
_CONVERSATION_ID: Final = re.compile(CONVERSATION_ID_PATTERN)
_KEY: Final = re.compile(rf"[\x20-\x7e]{{1,{NAME_CHARS_MAX}}}")


class ChatApi:
    """`open_chat` raises `ChatError`."""

    def __init__(self, turns: Turns, *, open_chat: Callable[[Question], OpenChat]) -> None:
        self._turns = turns
        self._open_chat = open_chat

    async def chat(self, request: Request) -> Response | Stream:
        """An error before the first word is answered with its own status; a later one is the stream's last event."""
        question = _read_question(request)
        chat = self._open_chat(question)
        if EVENT_STREAM in request.headers.get("accept", "").lower():
            events = _events(chat)
            return Stream(EVENT_STREAM, await anext(events), events)
        with chat.listening():
            return Response(200, await chat.answer())

    async def conversations(self, request: Request) -> Response:
        limit = request.query.get("limit", str(CONVERSATIONS_LISTED))
        if not (_LIMIT.fullmatch(limit) and 1 <= int(limit) <= CONVERSATIONS_LISTED_MAX):
            raise BadRequest(f"limit: must be a whole number from 1 to {CONVERSATIONS_LISTED_MAX}")
        return Response(200, Conversations(await self._turns.latest_conversations(int(limit))))

    async def conversation(self, request: Request) -> Response:
        found = None
        if _CONVERSATION_ID.fullmatch(request.last_segment):
            found = await self._turns.conversation(request.last_segment)
        return problem(404, "not_found", "There is no such conversation") if found is None else Response(200, found)


def read_body(request: Request, body_type: type[T]) -> T:
    """Raises `BadRequest`; its text names the field, never its value."""
    try:
        return msgspec.json.decode(request.body, type=body_type)
    except JSON_ERRORS as error:
        raise BadRequest(str(error)) from None


def caller_key(end_user: str | None, key: str) -> str:
    """A caller's idempotency key as it is stored: with the end user, so that keys of two end users never clash.

    Nor do they clash with the keys that channels make up. `schema.sql` converts keys of earlier releases to this form.
    """
    owner = "" if end_user is None else f"{len(end_user)}:{end_user}"
    return f"caller:{owner}:{key}"


def _read_question(request: Request) -> Question:
    """Raises `BadRequest` and `MessageTooLong`."""
    body = read_body(request, ChatRequest)
    if len(body.message) > MESSAGE_CHARS_MAX:
        raise MessageTooLong(f"message: more than {MESSAGE_CHARS_MAX} characters")
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise BadRequest(f"Idempotency-Key: must be 1 to {NAME_CHARS_MAX} printable characters")
    return Question(
        message=body.message,
        conversation_id=body.conversation_id,
        end_user=body.end_user,
        channel="api",
        key=None if key is None else caller_key(body.end_user, key),
    )


async def _events(chat: OpenChat) -> AsyncGenerator[bytes]:
    """The chat as server-sent events. Raises `ChatError` before the first event; later, an error is the last event."""
    with chat.listening():
        said = False
        try:
            async for text in chat.texts():
                said = True
                yield _event("token", {"text": text})
            answer = await chat.answer()
            if not said:
                # A repeated request gets the answer on disk, which comes in one piece.
                yield _event("token", {"text": answer.message})
            yield _event("done", answer)
        except ChatError as error:
            if not said:
                raise
            yield _event("error", AgentProblem(detail=error.detail, code=error.code))


def _event(name: str, content: Any) -> bytes:
    # Encoded JSON has no line breaks, so one data line holds it.
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(content) + b"\n\n"
