"""Faults on order, for the next answers."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec

#: The most orders at once; more are refused.
FAULTS_MAX = 1000


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One order. What its `kind` does, and when:

    `status`  instead of an answer: the HTTP status `status` (with `retry_after_s`), and a body that quotes the caller's key
    `hang`    before the head of an answer: nothing more, until released or the caller leaves
    `slow`    `delay_s` before each token
    `hold`    after `after_tokens` tokens: nothing more, until released or the caller leaves; `then` as if it were that kind
    `cut`     after `after_tokens` tokens: the connection ends
    `error`   after `after_tokens` tokens: an error object in the stream, then its end
    `garbage` after `after_tokens` tokens: a line that is no JSON
    `endless` the last token again and again
    `empty`   an answer without a word
    `no_usage` no usage figures
    `whole`   a stream is answered by one JSON document

    `model` limits it to one model, `contains` to requests whose last message contains that. `times`: null means always.
    """

    kind: Literal["status", "hang", "slow", "hold", "cut", "error", "garbage", "endless", "empty", "no_usage", "whole"]
    model: str | None = None
    contains: str | None = None
    times: Annotated[int, msgspec.Meta(ge=1)] | None = 1
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 500
    retry_after_s: int | None = None
    after_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    then: Literal["go_on", "cut", "error", "garbage"] = "go_on"
    delay_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.05


class Faults:
    """The orders that are not used up. `released` is the event that answers which hang or are held wait for."""

    def __init__(self) -> None:
        self._orders: list[Fault] = []
        self._release = asyncio.Event()

    def add(self, fault: Fault) -> bool:
        """Returns False if there are too many orders already."""
        if len(self._orders) >= FAULTS_MAX:
            return False
        self._orders.append(fault)
        return True

    def clear(self) -> None:
        self._orders.clear()
        self.release()

    def as_json(self) -> list[dict[str, Any]]:
        return [msgspec.to_builtins(fault) for fault in self._orders]

    def take(self, model: str, latest: str) -> Fault | None:
        """The oldest order that matches a request, or None. It is used up by one."""
        for fault in self._orders:
            if fault.model in {None, model} and (fault.contains is None or fault.contains in latest):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times == 0:
                        self._orders.remove(fault)
                return msgspec.structs.replace(fault)
        return None

    def release(self) -> None:
        """Release all answers whose requests have come, also those that have not come to the point where they wait."""
        self._release.set()
        self._release = asyncio.Event()

    @property
    def released(self) -> asyncio.Event:
        """The event that the next `release` sets. A request gets it once, as it comes, so that it misses no release."""
        return self._release
