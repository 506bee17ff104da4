"""Answers one request for a completion, with the fault that was ordered for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from hydracore.modelsim import wire
from hydracore.modelsim.exchange import Exchange
from hydracore.modelsim.faults import Fault
from hydracore.modelsim.script import Rule, answer, count_tokens, tokens

#: The most tokens of an answer that is ordered to be endless.
TOKENS_MAX: Final = 200_000


class Record(msgspec.Struct, kw_only=True):
    """One request, and how its answer ended. `ended` is `open` until then.

    `key_digest` identifies a key without showing it. `tokens_sent` counts the tokens sent, received or not.
    """

    number: int
    model: str
    messages: list[dict[str, str]]
    stream: bool
    temperature: float | None
    max_tokens: int | None
    key_digest: str | None
    prompt_tokens: int
    tokens_sent: int = 0
    ended: str = "open"


class Completion:
    """Call `run` once."""

    def __init__(
        self, exchange: Exchange, request: wire.CompletionRequest, record: Record, *, rules: Sequence[Rule]
    ) -> None:
        self._exchange = exchange
        self._request = request
        self._record = record
        self._tokens = tokens(answer(request.messages, rules))
        self._finish = "stop"
        if request.max_tokens is not None and len(self._tokens) > request.max_tokens:
            self._tokens = self._tokens[: request.max_tokens]
            self._finish = "length"

    async def run(self, fault: Fault | None, released: asyncio.Event) -> None:
        """Send the answer. Raises `ConnectionError` to have the connection closed in the middle of it."""
        match fault:
            case Fault(kind="status"):
                return await self._refuse(fault)
            case Fault(kind="hang"):
                await released.wait()
            case Fault(kind="empty"):
                self._tokens = []
            case Fault(kind="endless"):
                self._tokens = self._tokens[:-1] + self._tokens[-1:] * TOKENS_MAX
            case _:
                pass
        if self._request.stream and not (fault is not None and fault.kind == "whole"):
            await self._stream(fault, released)
        else:
            await self._send_whole(fault, released)
        self._record.ended = "done"
        return None

    async def _refuse(self, fault: Fault) -> None:
        self._record.ended = f"status {fault.status}"
        # The refusal quotes the key, as those of some real endpoints do, so that tests show that nobody passes it on.
        message = f"Scripted refusal of the request with {self._exchange.header('authorization') or 'no key'}"
        headers = {} if fault.retry_after_s is None else {"retry-after": str(fault.retry_after_s)}
        await self._exchange.answer(fault.status, wire.error_document(message, "scripted_refusal"), headers=headers)

    async def _send_whole(self, fault: Fault | None, released: asyncio.Event) -> None:
        sent: list[str] = []
        for index, token in enumerate(self._tokens):
            await self._apply_fault(fault, released, index)
            sent.append(token)
        self._record.tokens_sent = len(sent)
        usage = self._usage() if fault is None or fault.kind != "no_usage" else None
        document = wire.completion_document(
            self._record.number, self._request.model, "".join(sent), self._finish, usage
        )
        await self._exchange.answer(HTTPStatus.OK, document)

    async def _stream(self, fault: Fault | None, released: asyncio.Event) -> None:
        number, model = self._record.number, self._request.model
        await self._exchange.begin("text/event-stream")
        await self._send(wire.completion_chunk(number, model, {"role": "assistant", "content": ""}))
        for index, token in enumerate(self._tokens):
            match await self._apply_fault(fault, released, index):
                case "error":
                    await self._send(wire.error_document("Scripted error", "scripted_error"))
                    return await self._exchange.end()
                case "garbage":
                    await self._exchange.send(b"data: {scripted garbage\n\n")
                case _:
                    pass
            await self._send(wire.completion_chunk(number, model, {"content": token}))
            self._record.tokens_sent += 1
        await self._send(wire.completion_chunk(number, model, {}, self._finish))
        if self._request.wants_usage and not (fault is not None and fault.kind == "no_usage"):
            await self._send(wire.usage_chunk(number, model, self._usage()))
        await self._exchange.send(wire.encode_event(None))
        return await self._exchange.end()

    async def _apply_fault(self, fault: Fault | None, released: asyncio.Event, index: int) -> str:
        """Wait as ordered before token `index`. Returns what to do then. Raises `ConnectionError` to cut the answer."""
        if fault is None:
            return "go_on"
        if fault.kind == "slow":
            await asyncio.sleep(fault.delay_s)
        if index != fault.after_tokens:
            return "go_on"
        end: str = fault.kind
        if fault.kind == "hold":
            await released.wait()
            end = fault.then
        if end == "cut":
            self._record.ended = "cut"
            raise ConnectionAbortedError
        return end

    async def _send(self, content: dict[str, Any]) -> None:
        await self._exchange.send(wire.encode_event(content))

    def _usage(self) -> dict[str, int]:
        return wire.usage_document(prompt=count_tokens(self._request.messages), completion=self._record.tokens_sent)
