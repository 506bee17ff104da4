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
    """A request that is held. `apply`: applies it; None if it is applied already. Then `reply` is its answer."""

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


class HeldRequests:
    """All held requests. They stay until they are released, even if their client disconnects."""

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
        """Release one request, or all (None). Returns the ids of those released, which have been applied by then.

        `apply=False` loses them: a request that is not applied never will be, and an answer is not sent.
        """
        numbers = [number] if number in self._requests else list(self._requests) if number is None else []
        for each in numbers:
            request = self._requests.pop(each)
            reply = (request.apply() if request.apply is not None else request.reply) if apply else None
            if not request.released.done():
                request.released.set_result(reply)
        return numbers
