"""Asks a model behind any OpenAI-compatible endpoint, and reads its answer as it comes.

ModelCallError         the call gave no complete answer; `reason` says why in a few words
├── ModelCallFailed    the endpoint refused, broke off or sent an invalid answer
└── ModelCallTimedOut  its first or next word did not come in time
"""

from __future__ import annotations

import asyncio
import json
from codecs import getincrementaldecoder
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, NamedTuple

import httpx
import msgspec

from hydracore.agent.errors import AgentError
from hydracore.agent.expressclaw.context_window import ChatMessage
from hydracore.agent.expressclaw.money import Tokens
from hydracore.agent.expressclaw.sse import EventReader, EventTooLong
from hydracore.agent.expressclaw.token_counts import TokenCount, read_token_counts
from hydracore.json_input import JSON_ERRORS
from hydracore.media_types import EVENT_STREAM, media_type
from hydracore.transport import CONNECT_TIMEOUT_S, new_client

#: The largest event of a stream, which mostly has some 200 bytes, and the largest answer in one piece.
EVENT_BYTES_MAX = 256 * 1024
WHOLE_BYTES_MAX = 4 * 1024 * 1024

#: Seconds to wait for the usage figures and the end of the stream once the last word has come.
TRAILING_USAGE_TIMEOUT_S = 2.0

#: The longest answer. A longer one is cut off there.
ANSWER_CHARS_MAX = 100_000

_REASONS = {
    401: "the endpoint rejects the API key (HTTP 401)",
    403: "the endpoint rejects the API key (HTTP 403)",
    404: "the endpoint does not have this model (HTTP 404)",
    429: "the endpoint's rate limit is reached (HTTP 429)",
}


class ModelCallError(AgentError):
    """`reason` never quotes the endpoint, as some endpoints quote the key in their refusals.
    `is_free`: the call costs nothing, because the endpoint was not reached or refused it."""

    def __init__(self, reason: str, *, is_free: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_free = is_free


class ModelCallFailed(ModelCallError):
    pass


class ModelCallTimedOut(ModelCallError):
    pass


class ModelCall(NamedTuple):
    """`first_word_s`: the longest wait for the first word. `next_word_s`: the longest wait for each further word."""

    base_url: str
    api_key: str | None
    model: str
    messages: Sequence[ChatMessage]
    temperature: float | None
    max_tokens: int | None
    first_word_s: float
    next_word_s: float

    def __repr__(self) -> str:
        return f"ModelCall(model={self.model!r})"


class _Content(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    """`delta` in a stream, `message` in a whole answer."""

    delta: _Content | None = None
    message: _Content | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: TokenCount
    completion_tokens: TokenCount


class _Chunk(msgspec.Struct, frozen=True):
    """The fields that are read of an event of a stream, or of an answer in one piece."""

    choices: tuple[_Choice, ...] | None = None
    usage: Any = None
    error: Any = None


_CHUNK_DECODER = msgspec.json.Decoder(_Chunk)

#: What `_read_chunk` catches: also the errors of the lenient JSON parser.
_UNREADABLE = (*JSON_ERRORS, ValueError)

_UTF16 = getincrementaldecoder("utf-16-le")


class ModelAnswer:
    """One call. Read `texts` to its end. `tokens`: what the call has used, as far as known."""

    def __init__(self, client: httpx.AsyncClient, call: ModelCall) -> None:
        self._client = client
        self._call = call
        self._request = _request(client, call)
        self._finished = False
        self._is_over = False
        #: Holds back the first half of a surrogate pair until the second comes, and replaces a lone one.
        self._surrogate_decoder = _UTF16(errors="replace")
        #: The endpoint's own figures, which come last, or None before that or if it sends none.
        self.tokens: Tokens | None = None

    async def texts(self) -> AsyncGenerator[str]:
        """The words as they come. Raises `ModelCallError`. Closing the generator ends the call."""
        silence_s, was_finished = self._call.first_word_s, False
        limit = asyncio.timeout(silence_s)
        loop = asyncio.get_running_loop()
        try:
            async with limit, aclosing(self._chunk_texts()) as texts:
                async for text in texts:
                    if text:
                        # The time that our reader takes does not count.
                        limit.reschedule(None)
                        yield text
                    # Only words and the end extend the time: some endpoints send empty events while they make us wait.
                    if text or self._finished is not was_finished:
                        was_finished = self._finished
                        silence_s = TRAILING_USAGE_TIMEOUT_S if self._finished else self._call.next_word_s
                        limit.reschedule(loop.time() + silence_s)
        except httpx.ConnectTimeout:
            raise ModelCallTimedOut(f"no connection within {CONNECT_TIMEOUT_S:g} s", is_free=True) from None
        except TimeoutError:
            if not self._finished:
                raise ModelCallTimedOut(f"no output for {silence_s:g} s") from None
        except ModelCallFailed:
            # A failure behind the end of the answer does not matter, here and below.
            if not self._finished:
                raise
        except httpx.HTTPError as error:
            if not self._finished:
                raise error_of_transport(error) from None

    async def _chunk_texts(self) -> AsyncGenerator[str]:
        """The words of each JSON document, empty if it has none."""
        response = await self._client.send(self._request, stream=True)
        try:
            if response.status_code != HTTPStatus.OK:
                raise error_of_status(response.status_code)
            streamed = media_type(response.headers.get("content-type", "")) == EVENT_STREAM
            read = _read_stream(response) if streamed else _read_whole(response)
            async with aclosing(read) as contents:
                char_count = 0
                async for content in contents:
                    text = self._process_document(content)
                    yield text[: ANSWER_CHARS_MAX - char_count]
                    char_count += len(text)
                    if char_count > ANSWER_CHARS_MAX:
                        return
        finally:
            await response.aclose()
        if streamed and not self._finished:
            raise ModelCallFailed("the stream ended before the answer was complete")

    def _process_document(self, content: bytes) -> str:
        """Process one JSON document. Returns the words in it."""
        if content == b"[DONE]":
            self._finished = self._is_over = True
        if self._is_over:
            # The stream is read to its end all the same, so that the connection can be used again.
            return ""
        chunk = _read_chunk(content)
        if chunk.error is not None:
            raise ModelCallFailed("the endpoint sent an error instead of the rest of the answer")
        figures = read_token_counts(chunk.usage, _Usage)
        if figures is not None and figures.prompt_tokens > 0:
            self.tokens = Tokens(figures.prompt_tokens, figures.completion_tokens)
        choices = chunk.choices or ()
        # Some endpoints send an empty `finish_reason` with every word.
        self._finished |= any(choice.finish_reason for choice in choices)
        words = [part.content for choice in choices for part in (choice.delta, choice.message) if part is not None]
        # JSON escapes a character beyond U+FFFF as a surrogate pair, and some endpoints send its halves in two events.
        return self._surrogate_decoder.decode(
            "".join(word for word in words if word).encode("utf-16-le", "surrogatepass")
        )


class ModelClient:
    """The HTTP clients for all endpoints, kept as long as the runtime runs."""

    def __init__(self) -> None:
        self._clients: dict[bool, httpx.AsyncClient] = {}

    def ask(self, call: ModelCall) -> ModelAnswer:
        return ModelAnswer(self.http_client(call.base_url), call)

    def http_client(self, base_url: str) -> httpx.AsyncClient:
        tls = base_url.startswith("https:")
        if tls not in self._clients:
            # `ModelAnswer` has its own timeouts, by words. The number of calls at once is limited by that of chats.
            self._clients[tls] = new_client(tls=tls, timeout_s=CONNECT_TIMEOUT_S, connections_max=None)
        return self._clients[tls]

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()


def error_of_status(status: int) -> ModelCallFailed:
    """The error for an answer with another status than 200."""
    return ModelCallFailed(_REASONS.get(status, f"the endpoint answered HTTP {status}"), is_free=True)


def error_of_transport(error: httpx.HTTPError) -> ModelCallFailed:
    """The error for a call that failed in transport. It is free if no connection was made."""
    is_free = isinstance(error, httpx.ConnectError)
    return ModelCallFailed(f"the connection failed ({type(error).__name__})", is_free=is_free)


def _request(client: httpx.AsyncClient, call: ModelCall) -> httpx.Request:
    body: dict[str, Any] = {
        "model": call.model,
        "messages": [{"role": message.role, "content": message.content} for message in call.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if call.temperature is not None:
        body["temperature"] = call.temperature
    if call.max_tokens is not None:
        body["max_tokens"] = call.max_tokens
    headers = {"Content-Type": "application/json", "Accept": EVENT_STREAM}
    if call.api_key is not None:
        headers["Authorization"] = f"Bearer {call.api_key}"
    url = call.base_url.rstrip("/") + "/chat/completions"
    timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
    return client.build_request("POST", url, content=msgspec.json.encode(body), headers=headers, timeout=timeout)


def _read_chunk(content: bytes) -> _Chunk:
    """Raises `ModelCallFailed`."""
    try:
        try:
            return _CHUNK_DECODER.decode(content)
        except JSON_ERRORS:
            # msgspec refuses lone surrogates and a byte order mark; the standard library takes both.
            return msgspec.convert(json.loads(content), _Chunk)
    except _UNREADABLE:
        raise ModelCallFailed("the endpoint's answer cannot be parsed") from None


async def _read_stream(response: httpx.Response) -> AsyncGenerator[bytes]:
    events = EventReader(event_bytes_max=EVENT_BYTES_MAX)
    async for chunk in response.aiter_raw():
        try:
            for data in events.feed(chunk):
                yield data
        except EventTooLong:
            raise ModelCallFailed("the endpoint's answer cannot be parsed") from None
    for data in events.end():
        yield data


async def _read_whole(response: httpx.Response) -> AsyncGenerator[bytes]:
    """The answer of an endpoint that does not stream, in one piece."""
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > WHOLE_BYTES_MAX:
            raise ModelCallFailed("the answer is too large")
    yield bytes(content)
