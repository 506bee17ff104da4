"""The state that all handlers share, and the course of operations: counted, perhaps disturbed, applied, answered."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec
from litestar import MediaType, Request, Response

from hydracore.cloudsim.faults import REFUSALS, FaultOrder, Faults, refusal
from hydracore.cloudsim.held import Connection, HeldRequest, HeldRequests
from hydracore.cloudsim.problems import ApiError, Reply
from hydracore.cloudsim.quota import Quota
from hydracore.cloudsim.reconciler import ServerReconciler
from hydracore.cloudsim.records import Effects, ServerRecord
from hydracore.cloudsim.store import Store

AnyRequest = Request[Any, Any, Any]
Apply = Callable[[Effects], Reply]

#: The key in ASGI's scope under which the HTTP protocol class puts the client's connection.
CONNECTION_KEY = "cloudsim.connection"


class Sim:
    """One cloudsim. `token` is the API token of its one project."""

    def __init__(self, *, store: Store, reconciler: ServerReconciler, quota: Quota, token: str) -> None:
        self.store = store
        self.reconciler = reconciler
        self.quota = quota
        self.token = token
        self.faults = Faults()
        self.held = HeldRequests()
        #: How often each operation was asked for since this process began.
        self.requests: Counter[str] = Counter()

    async def perform(
        self, request: AnyRequest, operation: str, facts: Mapping[str, Any], apply: Apply
    ) -> Response[bytes]:
        """Call `apply` unless a fault prevents it. `facts` describe the server concerned, for the filters of faults."""
        self.requests[operation] += 1
        taken = self.faults.take(operation, facts)

        def attempt() -> Reply:
            try:
                return apply(taken.effects)
            except ApiError as error:
                return error.reply()

        if taken.order is None:
            return respond(attempt())
        reply = await self._reply_under_fault(request, operation, facts, taken.order, attempt)
        if reply is None:
            # This answer is never sent, as the connection is closed, but the framework needs one.
            _connection(request).abort()
            reply = Reply(500, None)
        return respond(reply)

    async def _reply_under_fault(
        self,
        request: AnyRequest,
        operation: str,
        facts: Mapping[str, Any],
        order: FaultOrder,
        attempt: Callable[[], Reply],
    ) -> Reply | None:
        """The answer under a fault, or None if the connection is to be closed without one."""
        if order.fault in REFUSALS:
            return refusal(order, self.token)
        if order.fault == "drop_reply":
            attempt()
            return None
        before = order.fault == "hold_before"
        held = HeldRequest(
            operation=operation,
            facts=facts,
            connection=_connection(request),
            apply=attempt if before else None,
            reply=None if before else attempt(),
        )
        return await self.held.hold(held)


def sim_of(request: AnyRequest) -> Sim:
    return cast("Sim", request.app.state.sim)


def respond(reply: Reply) -> Response[bytes]:
    """Convert a reply to the framework's response."""
    if isinstance(reply.body, bytes):
        return Response(reply.body, status_code=reply.status, headers=dict(reply.headers))
    content = b"" if reply.body is None else msgspec.json.encode(reply.body)
    return Response(content, status_code=reply.status, headers=dict(reply.headers), media_type=MediaType.JSON)


def facts_of(server: ServerRecord) -> dict[str, Any]:
    """The facts of a server that faults can filter by."""
    return {"server_id": server.id, "name": server.name, "location": server.location, "server_type": server.server_type}


def _connection(request: AnyRequest) -> Connection:
    return cast("Connection", cast("dict[str, Any]", request.scope)[CONNECTION_KEY])
