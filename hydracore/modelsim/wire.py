"""The messages of OpenAI's API, as far as a scripted model needs them."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from hydracore.modelsim.script import Message

#: The owner of all models, in the answers that name one.
OWNER: Final = "hydracore modelsim: scripted answers, no model"

#: Models that the list names. Any other name is answered, too.
LISTED_MODELS: Final = ("scripted", "scripted-fallback")


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that are used; a request may have others."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    messages: Annotated[tuple[Message, ...], msgspec.Meta(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None

    @property
    def latest(self) -> str:
        return self.messages[-1].content

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def usage_document(*, prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def completion_document(
    number: int, model: str, text: str, finish: str, usage: dict[str, int] | None
) -> dict[str, Any]:
    """An answer in one piece."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    document = {**_head(number, model, "chat.completion"), "choices": [choice]}
    return document if usage is None else {**document, "usage": usage}


def completion_chunk(number: int, model: str, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    """One piece of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {**_head(number, model, "chat.completion.chunk"), "choices": [choice]}


def usage_chunk(number: int, model: str, usage: dict[str, int]) -> dict[str, Any]:
    """The piece with the figures, which comes last and has no choice."""
    return {**_head(number, model, "chat.completion.chunk"), "choices": [], "usage": usage}


def error_document(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def model_list() -> dict[str, Any]:
    models = [{"id": name, "object": "model", "created": 0, "owned_by": OWNER} for name in LISTED_MODELS]
    return {"object": "list", "data": models}


def encode_event(content: dict[str, Any] | None) -> bytes:
    """A server-sent event; None is the end of a stream."""
    return b"data: " + (b"[DONE]" if content is None else msgspec.json.encode(content)) + b"\n\n"


def _head(number: int, model: str, kind: str) -> dict[str, Any]:
    # Not the time of day: answers are the same on every run.
    return {
        "id": f"chatcmpl-scripted-{number}",
        "object": kind,
        "created": 0,
        "model": model,
        "system_fingerprint": OWNER,
    }
