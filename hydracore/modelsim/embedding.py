"""`/v1/embeddings` without a model: a text's vector is made of its words, so texts with words in common are similar."""

from __future__ import annotations

import hashlib
import math
import re
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec

from hydracore.json_input import JSON_ERRORS
from hydracore.modelsim import wire
from hydracore.modelsim.exchange import Exchange
from hydracore.modelsim.recent_records import RecentRecords
from hydracore.modelsim.script import tokens

#: The size of vectors. Two words fall on the same place by a chance of one in this number.
VECTOR_SIZE: Final = 512
TEXTS_MAX: Final = 2048
#: Requests remembered; older ones are forgotten.
RECORDS_MAX: Final = 200

#: A request for a model of this name is answered by HTTP 503.
BROKEN_MODEL: Final = "broken-embedding"

#: Words that are ignored, as they say nothing about the subject of a text.
_STOP_WORDS: Final = frozenset(
    ["a", "an", "and", "are", "do", "i", "in", "is", "it", "my", "of", "the", "to", "what", "you"]
)
_WORD: Final = re.compile(r"\w+")


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that are used; a request may have others."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    input: str | Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=TEXTS_MAX)]

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.input,) if isinstance(self.input, str) else self.input


class Embeddings:
    """`records`: the latest requests as they came."""

    def __init__(self) -> None:
        self.records = RecentRecords[dict[str, Any]](count_max=RECORDS_MAX)

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        try:
            request = msgspec.json.decode(body, type=EmbeddingRequest)
        except JSON_ERRORS as error:
            await exchange.answer(HTTPStatus.BAD_REQUEST, wire.error_document(str(error), "invalid_request_error"))
            return
        self.records.add({"model": request.model, "texts": request.texts}, body=body)
        if request.model == BROKEN_MODEL:
            await exchange.answer(
                HTTPStatus.SERVICE_UNAVAILABLE, wire.error_document("Scripted refusal", "scripted_refusal")
            )
            return
        count = sum(len(tokens(text)) for text in request.texts)
        data = [
            {"object": "embedding", "index": index, "embedding": vector(text)}
            for index, text in enumerate(request.texts)
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        answer = {"object": "list", "model": request.model, "data": data, "usage": usage, "owned_by": wire.OWNER}
        await exchange.answer(HTTPStatus.OK, answer)


def vector(text: str) -> list[float]:
    """The vector of a text, always the same for the same text. Its length is one if the text has a word that counts."""
    counts = [0.0] * VECTOR_SIZE
    for word in set(_WORD.findall(text.lower())) - _STOP_WORDS:
        counts[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) % VECTOR_SIZE] += 1.0
    length = math.sqrt(sum(count * count for count in counts)) or 1.0
    return [count / length for count in counts]
