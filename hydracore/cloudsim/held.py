"""Requests that a fault holds: before they are applied, or between that and their answer."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from hydracore.cloudsim.problems import Reply


class Connection(Protocol):
    """The client's end of a request."""

    def is_closing(self) -> bool: ...

    def abort(self) -> None: ...


class HeldRequest:
    """One of them. `apply` is None once it is applied, and then `reply` is what it will answer."""

    def __init__(
        self,
        *,
        operation: str,
        facts: Mapping[str, Any],
        connection: Connection,
        apply: Callable[[], Reply] | None,
        reply: Reply | None,
    ) -> None:
        self.operation = operation
        self.facts = facts
        self.connection = connection
        self.apply = apply
        self.reply = reply
        self.released: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()

    def describe(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "operation": self.operation,
            "name": self.facts.get("name"),
            "server_id": self.facts.get("server_id"),
            "applied": self.apply is None,
            "client_gone": self.connection.is_closing(),
        }


class Held:
    """All of them. They stay until they are released, even when their client has gone."""

    def __init__(self) -> None:
        self._requests: dict[int, HeldRequest] = {}
        self._next_id = 1

    async def hold(self, request: HeldRequest) -> Reply | None:
        """Wait for the release. Returns the answer to send, or None when the connection is to be closed without one."""
        number, self._next_id = self._next_id, self._next_id + 1
        self._requests[number] = request
        try:
            return await request.released
        finally:
            self._requests.pop(number, None)

    def all(self) -> list[dict[str, Any]]:
        return [{"id": number, **request.describe()} for number, request in self._requests.items()]

    def release(self, number: int | None, *, apply: bool) -> list[int]:
        """Let one request go on, or all (None); the ids of those that did. They are applied when this returns.

        `apply=False` loses it: a request that is not applied never will be, an answer is not sent.
        """
        numbers = [number] if number in self._requests else list(self._requests) if number is None else []
        for each in numbers:
            request = self._requests.pop(each)
            reply = (request.apply() if request.apply is not None else request.reply) if apply else None
            if not request.released.done():
                request.released.set_result(reply)
        return numbers
