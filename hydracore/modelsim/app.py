"""The scripted model server as an ASGI application: OpenAI's API below /v1, its control interface below /_sim."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

import msgspec

from hydracore.json_input import JSON_ERRORS
from hydracore.modelsim import wire
from hydracore.modelsim.completion import Completion, Record
from hydracore.modelsim.embedding import Embeddings
from hydracore.modelsim.exchange import BodyTooLarge, CallerLeft, Exchange, Receive, Scope, Send
from hydracore.modelsim.faults import Fault, Faults
from hydracore.modelsim.recent_records import RecentRecords
from hydracore.modelsim.script import Rule, count_tokens
from hydracore.waiting import first_of

#: Requests remembered for /_sim/requests; older ones are forgotten.
RECORDS_MAX: Final = 2000


class ModelSim:
    """It accepts any key and any name of a model."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.faults = Faults()
        self._rules = rules
        self._embeddings = Embeddings()
        self._records = RecentRecords[Record](count_max=RECORDS_MAX)
        self._request_count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "the server runs with lifespan and websockets off"
        exchange = Exchange(scope, receive, send)
        try:
            await self._route(exchange, await exchange.body())
        except BodyTooLarge:
            await exchange.answer(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, wire.error_document("The body is too large", "invalid_request")
            )
        except CallerLeft:
            pass

    async def _route(self, exchange: Exchange, body: bytes) -> None:
        match exchange.method, exchange.path:
            case "GET", "/":
                await exchange.answer(HTTPStatus.OK, {"what": wire.OWNER})
            case "GET", "/v1/models":
                await exchange.answer(HTTPStatus.OK, wire.model_list())
            case "POST", "/v1/chat/completions":
                await self._complete(exchange, body)
            case "POST", "/v1/embeddings":
                await self._embeddings.answer(exchange, body)
            case "GET", "/_sim/embeddings":
                await exchange.answer(HTTPStatus.OK, {"requests": list(self._embeddings.records)})
            case "GET", "/_sim/requests":
                await exchange.answer(HTTPStatus.OK, {"requests": list(self._records)})
            case "DELETE", "/_sim/requests":
                self._records.clear()
                await exchange.answer(HTTPStatus.OK, {})
            case "GET", "/_sim/faults":
                await exchange.answer(HTTPStatus.OK, {"faults": self.faults.as_json()})
            case "POST", "/_sim/faults":
                await self._add_fault(exchange, body)
            case "DELETE", "/_sim/faults":
                self.faults.clear()
                await exchange.answer(HTTPStatus.OK, {})
            case "POST", "/_sim/release":
                self.faults.release()
                await exchange.answer(HTTPStatus.OK, {})
            case _:
                await exchange.answer(HTTPStatus.NOT_FOUND, wire.error_document("No such path", "not_found"))

    async def _add_fault(self, exchange: Exchange, body: bytes) -> None:
        try:
            accepted = self.faults.add(msgspec.json.decode(body, type=Fault))
        except JSON_ERRORS as error:
            await exchange.answer(HTTPStatus.BAD_REQUEST, wire.error_document(str(error), "bad_fault"))
            return
        await exchange.answer(HTTPStatus.OK if accepted else HTTPStatus.CONFLICT, {})

    async def _complete(self, exchange: Exchange, body: bytes) -> None:
        try:
            request = msgspec.json.decode(body, type=wire.CompletionRequest)
        except JSON_ERRORS as error:
            await exchange.answer(HTTPStatus.BAD_REQUEST, wire.error_document(str(error), "invalid_request_error"))
            return
        record = self._record(exchange, request, body)
        completion = Completion(exchange, request, record, rules=self._rules)
        fault = self.faults.take(request.model, request.latest)
        answering = asyncio.create_task(completion.run(fault, self.faults.released))
        leaving = asyncio.create_task(exchange.wait_until_left())
        if answering not in await first_of(answering, leaving):
            record.ended = "left"
        for task in (answering, leaving):
            # An aborted answer is left unfinished, so that the server closes the connection.
            with suppress(ConnectionError, asyncio.CancelledError):
                task.result()

    def _record(self, exchange: Exchange, request: wire.CompletionRequest, body: bytes) -> Record:
        self._request_count += 1
        key = exchange.header("authorization")
        messages: list[dict[str, Any]] = [msgspec.to_builtins(message) for message in request.messages]
        record = Record(
            number=self._request_count,
            model=request.model,
            messages=messages,
            stream=request.stream,
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            key_digest=None if key is None else key_digest(key),
            prompt_tokens=count_tokens(request.messages),
        )
        self._records.add(record, body=body)
        return record


def key_digest(authorization: str) -> str:
    """The digest of an `Authorization` header that records show in its place."""
    return hashlib.sha256(authorization.encode()).hexdigest()[:12]
