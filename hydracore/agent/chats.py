"""Chats as the agent's API and its channels see them, whichever runtime answers.

ChatError                     `status` and `code` are what the API answers
├── BadRequest                422 bad_request           the request is malformed
├── MessageTooLong            413 too_large
├── BudgetSpent               402 budget_spent          no model is called until the day or month is over
├── KeyMismatch               409 idempotency_mismatch  the key was used for another request
├── Draining                  503 draining              no new chats
├── TooManyChats              503 busy
├── NotServing                503 not_serving           no runtime runs
├── Interrupted               503 interrupted           the runtime was stopped in the middle
├── ModelFailed               502 model_failed          no model of the policy gave an answer
└── ModelTimeout              504 model_timeout         no model of the policy answered in time
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

from hydracore.agent.chat_messages import ChatAnswer
from hydracore.agent.errors import AgentError
from hydracore.agent.messages import Channel


class ChatError(AgentError):
    """`detail`: one line for people, without secrets and without what a model's endpoint said."""

    status: ClassVar[int]
    code: ClassVar[str]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequest(ChatError):
    status: ClassVar[int] = 422
    code: ClassVar[str] = "bad_request"


class MessageTooLong(ChatError):
    status: ClassVar[int] = 413
    code: ClassVar[str] = "too_large"


class BudgetSpent(ChatError):
    status: ClassVar[int] = 402
    code: ClassVar[str] = "budget_spent"


class KeyMismatch(ChatError):
    status: ClassVar[int] = 409
    code: ClassVar[str] = "idempotency_mismatch"


class Draining(ChatError):
    status: ClassVar[int] = 503
    code: ClassVar[str] = "draining"


class TooManyChats(ChatError):
    status: ClassVar[int] = 503
    code: ClassVar[str] = "busy"


class NotServing(ChatError):
    status: ClassVar[int] = 503
    code: ClassVar[str] = "not_serving"


class Interrupted(ChatError):
    status: ClassVar[int] = 503
    code: ClassVar[str] = "interrupted"


class ModelFailed(ChatError):
    status: ClassVar[int] = 502
    code: ClassVar[str] = "model_failed"


class ModelTimeout(ChatError):
    status: ClassVar[int] = 504
    code: ClassVar[str] = "model_timeout"


class Question(NamedTuple):
    """One message to answer. `key`: the idempotency key, if any. `end_user`: None is the owner."""

    message: str
    conversation_id: str | None
    end_user: str | None
    channel: Channel
    key: str | None

    def __repr__(self) -> str:
        return f"Question(conversation_id={self.conversation_id!r}, channel={self.channel!r})"


class OpenChat:
    """An answer while it is made. Each listener gets all of it. When the last listener leaves, it is abandoned.

    The producer calls `add_text`, and at last `finish` or `fail`. A listener reads `texts` or `answer` inside `listening`.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._outcome: ChatAnswer | ChatError | None = None
        self._changed = asyncio.Event()
        self._listeners = 0
        self._was_delivered = False
        #: Set when nobody listens any more, and to end the chat early.
        self.abandoned = asyncio.Event()

    def add_text(self, text: str) -> None:
        self._texts.append(text)
        self._wake()

    def retract(self) -> bool:
        """Drop the texts so far, unless a listener has read some of them. Returns whether they were dropped."""
        if not self._was_delivered:
            self._texts.clear()
        return not self._was_delivered

    def finish(self, answer: ChatAnswer) -> None:
        assert self._outcome is None
        self._outcome = answer
        self._wake()

    def fail(self, error: ChatError) -> None:
        """End with an error, unless the chat has ended already."""
        if self._outcome is None:
            self._outcome = error
            self._wake()

    @property
    def is_finished(self) -> bool:
        return self._outcome is not None

    @contextmanager
    def listening(self) -> Generator[None]:
        self._listeners += 1
        try:
            yield
        finally:
            self._listeners -= 1
            if self._listeners == 0:
                self.abandoned.set()

    async def texts(self) -> AsyncGenerator[str]:
        """The answer in pieces: each is all text that was added since the piece before it. Raises `ChatError`."""
        read_count = 0
        while True:
            changed = self._changed
            if read_count < len(self._texts):
                self._was_delivered = True
                text = "".join(self._texts[read_count:])
                read_count = len(self._texts)
                yield text
            elif self._outcome is not None:
                break
            else:
                await changed.wait()
        await self.answer()

    async def answer(self) -> ChatAnswer:
        """The whole answer, once there is one. Raises `ChatError`."""
        while self._outcome is None:
            await self._changed.wait()
        if isinstance(self._outcome, ChatError):
            # A new exception for each listener, as raising one adds a traceback to it.
            raise type(self._outcome)(self._outcome.detail)
        return self._outcome

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
