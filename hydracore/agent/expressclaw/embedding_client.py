"""Fetches embeddings of texts from an OpenAI-compatible endpoint: one vector of length one per text."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

import httpx
import msgspec

from hydracore.agent.expressclaw.model_client import (
    ModelCallFailed,
    ModelCallTimedOut,
    ModelClient,
    error_of_status,
    error_of_transport,
)
from hydracore.agent.expressclaw.token_counts import TokenCount, read_token_counts
from hydracore.json_input import JSON_ERRORS
from hydracore.transport import AnswerTooLarge, exchange

#: The largest answer that is read. It has room for a hundred vectors of some 3000 numbers of 25 characters.
ANSWER_BYTES_MAX = 8 * 1024 * 1024

Vector: TypeAlias = "array[float]"


class EmbeddingCall(NamedTuple):
    base_url: str
    api_key: str | None
    model: str
    texts: Sequence[str]
    timeout_s: float

    def __repr__(self) -> str:
        return f"EmbeddingCall(model={self.model!r})"


class EmbeddingAnswer(NamedTuple):
    """The vectors in the order of the texts. `prompt_tokens`: the endpoint's own figure, 0 where it has none."""

    vectors: list[Vector]
    prompt_tokens: int


class _Datum(msgspec.Struct, frozen=True):
    index: int
    embedding: list[float]


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: TokenCount


class _Answer(msgspec.Struct, frozen=True):
    data: list[_Datum]
    usage: Any = None


async def embed(client: ModelClient, call: EmbeddingCall) -> EmbeddingAnswer:
    """Raises `ModelCallError`."""
    http = client.http_client(call.base_url)
    headers = {"Content-Type": "application/json"}
    if call.api_key is not None:
        headers["Authorization"] = f"Bearer {call.api_key}"
    body = {"model": call.model, "input": call.texts, "encoding_format": "float"}
    url = call.base_url.rstrip("/") + "/embeddings"
    request = http.build_request("POST", url, content=msgspec.json.encode(body), headers=headers)
    try:
        answer = await exchange(http, request, timeout_s=call.timeout_s, answer_bytes_max=ANSWER_BYTES_MAX)
    except TimeoutError:
        raise ModelCallTimedOut(f"no answer within {call.timeout_s:g} s") from None
    except AnswerTooLarge:
        raise ModelCallFailed("the answer is too large") from None
    except httpx.HTTPError as error:
        raise error_of_transport(error) from None
    if answer.status != HTTPStatus.OK:
        raise error_of_status(answer.status)
    # In a thread, as parsing some megabytes of numbers would block every chat.
    return await asyncio.to_thread(_read, answer.content, len(call.texts))


def cosine_similarity(one: Vector, other: Vector) -> float:
    """The cosine of the angle between two vectors of length one: 1 for the same meaning, about 0 for unrelated ones."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def _read(content: bytes, count: int) -> EmbeddingAnswer:
    try:
        answer = msgspec.json.decode(content, type=_Answer)
    except JSON_ERRORS:
        raise ModelCallFailed("the endpoint's answer cannot be parsed") from None
    data = sorted(answer.data, key=lambda datum: datum.index)
    sizes = {len(datum.embedding) for datum in data}
    if [datum.index for datum in data] != list(range(count)) or len(sizes) != 1:
        raise ModelCallFailed("the endpoint's answer cannot be parsed")
    figures = read_token_counts(answer.usage, _Usage)
    vectors = [_normalized(datum.embedding) for datum in data]
    return EmbeddingAnswer(vectors, 0 if figures is None else figures.prompt_tokens)


def _normalized(numbers: list[float]) -> Vector:
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return array("f", [number / length for number in numbers])
