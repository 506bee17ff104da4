"""Telegram's bot API, as far as a channel needs it (https://core.telegram.org/bots/api).

TelegramError
├── TelegramRefused      the token is not valid, or no longer
├── TelegramBusy         another program polls with this token, or there were too many calls; `retry_after_s`
└── TelegramUnavailable  no usable answer. `is_unsent`: the request surely did not arrive, so that it may be repeated
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import httpx
import msgspec

from hydracore.agent.errors import AgentError
from hydracore.agent.messages import COUNT_MAX
from hydracore.json_input import JSON_ERRORS
from hydracore.transport import AnswerTooLarge, exchange, new_client

T = TypeVar("T")

#: The longest that Telegram holds a poll without news, and the longest that a call may take beyond that.
POLL_S = 25
CALL_TIMEOUT_S = 15.0

#: The longest wait that Telegram can ask for. A longer one is cut to this; then Telegram is called, and may ask again.
RETRY_AFTER_S_MAX = 60.0

#: The largest answer that is read, and the most updates per poll. It has room for that number of the longest kind.
ANSWER_BYTES_MAX = 4 * 1024 * 1024
UPDATES_MAX = 100

#: The longest message that Telegram takes, in characters.
TEXT_CHARS_MAX = 4096

#: The bot's public number, and its secret. No character can lead out of the URL's path that the token is put into.
_TOKEN = re.compile(r"(\d{1,20}):[A-Za-z0-9_-]{1,200}")

#: Errors after which nothing was sent. After any other one, the request may have arrived.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.InvalidURL, UnicodeError)


class TelegramError(AgentError):
    """Its text never contains the token, nor anything that Telegram sent."""


class TelegramRefused(TelegramError):
    pass


class TelegramBusy(TelegramError):
    """The request was surely not carried out. `retry_after_s` is at most `RETRY_AFTER_S_MAX`."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TelegramUnavailable(TelegramError):
    def __init__(self, message: str, *, is_unsent: bool) -> None:
        super().__init__(message)
        self.is_unsent = is_unsent


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
    """`message` is empty if there is none. It is parsed when it is answered, so that an invalid one
    does not hold up the others."""

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
        """The updates from `offset` on; waits for some, at most `wait_s`. Telegram forgets those below `offset`."""
        body = {"timeout": wait_s, "limit": UPDATES_MAX, "allowed_updates": ["message"]}
        if offset is not None:
            body["offset"] = offset
        return await self._call("getUpdates", body, list[Update], timeout_s=wait_s + CALL_TIMEOUT_S)

    async def send(self, chat_id: int, text: str) -> None:
        assert len(text) <= TEXT_CHARS_MAX
        await self._call("sendMessage", {"chat_id": chat_id, "text": text}, dict, timeout_s=CALL_TIMEOUT_S)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _call(self, method: str, body: dict[str, Any], answer_type: type[T], *, timeout_s: float) -> T:
        content = msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"}
        try:
            request = self._client.build_request("POST", self._url + method, content=content, headers=headers)
            answer = await exchange(self._client, request, timeout_s=timeout_s, answer_bytes_max=ANSWER_BYTES_MAX)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, TimeoutError, AnswerTooLarge) as error:
            # A timeout has what timed out as its cause.
            cause = error.__cause__ if isinstance(error.__cause__, httpx.HTTPError) else error
            is_unsent = isinstance(cause, _NOT_SENT)
            what = "cannot be reached" if is_unsent else "does not answer"
            raise TelegramUnavailable(f"Telegram {what} ({type(cause).__name__})", is_unsent=is_unsent) from None
        if answer.status != HTTPStatus.OK:
            raise _refusal(answer.status, answer.content)
        try:
            return msgspec.json.decode(msgspec.json.decode(answer.content, type=_Result).result, type=answer_type)
        except JSON_ERRORS:
            raise TelegramUnavailable("Telegram's answer cannot be parsed", is_unsent=False) from None


def _refusal(status: int, content: bytes) -> TelegramError:
    match status:
        case 401 | 404:
            # The token is a part of the URL, so a wrong one may be answered with 404, too.
            return TelegramRefused(f"Telegram refuses the bot token (HTTP {status})")
        case 409:
            return TelegramBusy("Another program polls with this bot token", retry_after_s=0)
        case 429:
            return TelegramBusy("Telegram's rate limit is reached", retry_after_s=_retry_after_s(content))
        case _:
            # Even behind a gateway's 502 or 503 the request may have been carried out.
            return TelegramUnavailable(f"Telegram answered HTTP {status}", is_unsent=False)


def _retry_after_s(content: bytes) -> float:
    try:
        asked = msgspec.json.decode(content, type=_Refusal).parameters.retry_after or 0
    except JSON_ERRORS:
        return 0.0
    # Bounded before it is converted, as it may be too large for a float.
    return float(min(max(asked, 0), RETRY_AFTER_S_MAX))
