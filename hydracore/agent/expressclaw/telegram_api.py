"""Telegram's bot API, as far as a channel needs it (https://core.telegram.org/bots/api).

TelegramError
├── TelegramRefused    the token is not one, or not one any more
├── TelegramBusy       another program polls with this token, or there were too many calls; `retry_after_s`
└── TelegramAway       no answer, or none that helps. `again`: it surely did not get there and may next time
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import httpx
import msgspec

from hydracore.agent.errors import AgentError
from hydracore.agent.messages import COUNT_MAX
from hydracore.reading import UNREADABLE
from hydracore.transport import AnswerTooLarge, exchange, new_client

T = TypeVar("T")

#: How long Telegram may keep a poll without news, and what the way there and back may add.
POLL_S = 25
CALL_TIMEOUT_S = 15.0

#: The longest that Telegram's wish to be left alone is heeded; then it is asked whether it still has it.
RETRY_AFTER_MAX_S = 60.0

#: A hundred updates of the longest kind.
ANSWER_MAX_BYTES = 4 * 1024 * 1024
UPDATES_MAX = 100

#: What Telegram takes as one message, in characters.
TEXT_MAX_CHARS = 4096

#: The public number of the bot, and its secret. Nothing that could lead out of the path it is put into.
_TOKEN = re.compile(r"(\d{1,20}):[A-Za-z0-9_-]{1,200}")

#: With these nothing was sent, and with any other trouble something may have been.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.InvalidURL, UnicodeError)


class TelegramError(AgentError):
    """The text never has the token, and nothing of what Telegram said."""


class TelegramRefused(TelegramError):
    pass


class TelegramBusy(TelegramError):
    """Surely not carried out. `retry_after_s` is at most `RETRY_AFTER_MAX_S`."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TelegramAway(TelegramError):
    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


#: Telegram's numbers have 52 bits at most.
Number = Annotated[int, msgspec.Meta(ge=-COUNT_MAX, le=COUNT_MAX)]


class Chat(msgspec.Struct, frozen=True):
    id: Number


class User(msgspec.Struct, frozen=True):
    id: Number


class Message(msgspec.Struct, frozen=True, rename={"sender": "from"}):
    """`text` is absent from pictures, voices and the like."""

    chat: Chat
    sender: User | None = None
    text: str | None = None


class Update(msgspec.Struct, frozen=True):
    """`message` is empty where there is none. It is read when it is answered, so that an odd one does not stand in the way
    of the others."""

    update_id: Number
    message: msgspec.Raw = msgspec.Raw()


class _Parameters(msgspec.Struct, frozen=True):
    retry_after: int | None = None


class _Refusal(msgspec.Struct, frozen=True):
    parameters: _Parameters = _Parameters()


class _Result(msgspec.Struct, frozen=True):
    result: msgspec.Raw


def bot_id(token: str) -> str | None:
    """The public part of a token; None when it is no token."""
    match = _TOKEN.fullmatch(token)
    return match[1] if match is not None else None


class TelegramApi:
    """The methods of one bot. All raise `TelegramError`."""

    def __init__(self, *, token: str, base_url: str) -> None:
        assert bot_id(token) is not None
        self._url = f"{base_url.rstrip('/')}/bot{token}/"
        self._client = new_client(tls=base_url.startswith("https:"), timeout_s=POLL_S + CALL_TIMEOUT_S)

    async def updates(self, offset: int | None, *, wait_s: int) -> list[Update]:
        """What is new from `offset` on; waits for it, at most `wait_s`. Telegram forgets what is below `offset`."""
        body = {"timeout": wait_s, "limit": UPDATES_MAX, "allowed_updates": ["message"]}
        if offset is not None:
            body["offset"] = offset
        return await self._call("getUpdates", body, list[Update], timeout_s=wait_s + CALL_TIMEOUT_S)

    async def send(self, chat_id: int, text: str) -> None:
        assert len(text) <= TEXT_MAX_CHARS
        await self._call("sendMessage", {"chat_id": chat_id, "text": text}, dict, timeout_s=CALL_TIMEOUT_S)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _call(self, method: str, body: dict[str, Any], answer_type: type[T], *, timeout_s: float) -> T:
        content = msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"}
        try:
            request = self._client.build_request("POST", self._url + method, content=content, headers=headers)
            answer = await exchange(self._client, request, timeout_s=timeout_s, answer_max_bytes=ANSWER_MAX_BYTES)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, TimeoutError, AnswerTooLarge) as error:
            # A timeout has what timed out as its cause.
            cause = error.__cause__ if isinstance(error.__cause__, httpx.HTTPError) else error
            again = isinstance(cause, _NOT_SENT)
            what = "cannot be reached" if again else "does not answer"
            raise TelegramAway(f"Telegram {what} ({type(cause).__name__})", again=again) from None
        if answer.status != HTTPStatus.OK:
            raise _refusal(answer.status, answer.content)
        try:
            return msgspec.json.decode(msgspec.json.decode(answer.content, type=_Result).result, type=answer_type)
        except UNREADABLE:
            raise TelegramAway("Telegram sent an answer that cannot be read", again=False) from None


def _refusal(status: int, content: bytes) -> TelegramError:
    match status:
        case 401 | 404:
            # The address is made of the token, so a wrong one is a wrong address.
            return TelegramRefused(f"Telegram refuses the bot token (HTTP {status})")
        case 409:
            return TelegramBusy("Another program polls with this bot token", retry_after_s=0)
        case 429:
            return TelegramBusy("Telegram is called too often", retry_after_s=_retry_after_s(content))
        case _:
            # Also a gateway's 502 or 503 may come of an answer that got lost behind it.
            return TelegramAway(f"Telegram answers HTTP {status}", again=False)


def _retry_after_s(content: bytes) -> float:
    try:
        asked = msgspec.json.decode(content, type=_Refusal).parameters.retry_after or 0
    except UNREADABLE:
        return 0.0
    # Before it is made a float, for which it may be too large.
    return float(min(max(asked, 0), RETRY_AFTER_MAX_S))
