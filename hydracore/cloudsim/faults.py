"""Faults on request. They are in memory only: a restarted cloudsim has none.

There are three kinds: an error in place of the operation (`REFUSALS`), a disturbed connection (`drop_reply`,
`hold_before`, `hold_after`), and effects on the server (`slow_boot`, `dead_boot`, `action_error`,
`start_error`). An operation meets at most one fault of the first two kinds, and any of the third.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from hydracore.cloudsim.problems import ApiError, Reply
from hydracore.cloudsim.records import Effects

Operation = Literal[
    "*",
    "create_server",
    "get_server",
    "list_servers",
    "update_server",
    "delete_server",
    "power_server",
    "get_actions",
    "get_action",
    "list_server_actions",
    "create_ssh_key",
    "get_ssh_key",
    "list_ssh_keys",
    "update_ssh_key",
    "delete_ssh_key",
    "list_server_types",
    "list_locations",
    "list_images",
]
Fault = Literal[
    "no_capacity",
    "locked",
    "rate_limit",
    "server_error",
    "gateway",
    "error",
    "drop_reply",
    "hold_before",
    "hold_after",
    "slow_boot",
    "dead_boot",
    "action_error",
    "start_error",
]

#: Answers in place of the operation, which is not applied: HTTP status and code.
REFUSALS: Final[dict[str, tuple[int, str]]] = {
    "no_capacity": (412, "resource_unavailable"),
    "locked": (423, "locked"),
    "rate_limit": (429, "rate_limit_exceeded"),
    "server_error": (500, "server_error"),
    "gateway": (502, "bad_gateway"),
    "error": (422, "invalid_input"),
}
CREATE_FAULTS: Final = frozenset({"slow_boot", "dead_boot", "start_error"})
EFFECT_FAULTS: Final = CREATE_FAULTS | {"action_error"}

FAULTS_MAX: Final = 1000


class FaultOrder(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A fault, the operations that meet it, and how often. Fields that a fault does not use are ignored."""

    operation: Operation
    fault: Fault
    #: How often; None is for ever. The first `skip` matching operations go through unharmed.
    times: Annotated[int, Meta(ge=1)] | None = 1
    skip: Annotated[int, Meta(ge=0)] = 0
    #: Only for these servers.
    name: str | None = None
    server_id: int | None = None
    location: str | None = None
    server_type: str | None = None
    #: For a refusal: the status and code, if not the usual ones.
    status: Annotated[int, Meta(ge=400, le=599)] | None = None
    code: str | None = None
    #: For a 429 or 503: the value of `Retry-After`. The real API documents only the headers of `quota`.
    retry_after_s: Annotated[int, Meta(ge=0)] | None = None
    #: For slow_boot.
    delay_s: Annotated[float, Meta(ge=0)] = 1.0

    def matches(self, operation: str, facts: Mapping[str, Any]) -> bool:
        """Whether this fault applies to `operation` on a server with these facts."""
        wanted = {
            "name": self.name,
            "server_id": self.server_id,
            "location": self.location,
            "server_type": self.server_type,
        }
        return self.operation in {"*", operation} and all(
            value is None or facts.get(field) == value for field, value in wanted.items()
        )


class MatchedFaults(msgspec.Struct, frozen=True, kw_only=True):
    """The faults of one operation. `order`: a refusal or disturbed connection, if any. `effects`: on the server."""

    order: FaultOrder | None = None
    effects: Effects = Effects()


class Faults:
    """The orders that are not used up."""

    def __init__(self) -> None:
        self._orders: dict[int, FaultOrder] = {}
        self._next_id = 1

    def add(self, order: FaultOrder) -> int:
        """Raises `ApiError` for an order that could never take effect."""
        if order.fault in CREATE_FAULTS and order.operation != "create_server":
            raise ApiError(422, "invalid_input", f"{order.fault} is a fault of create_server")
        if order.fault == "action_error" and order.operation not in {"create_server", "delete_server", "power_server"}:
            raise ApiError(
                422, "invalid_input", "action_error is a fault of create_server, delete_server and power_server"
            )
        if len(self._orders) >= FAULTS_MAX:
            raise ApiError(422, "invalid_input", f"at most {FAULTS_MAX} faults can be active")
        number, self._next_id = self._next_id, self._next_id + 1
        self._orders[number] = order
        return number

    def all(self) -> list[dict[str, Any]]:
        """The orders that are not used up, as JSON data. `times` and `skip` are what is left of them."""
        return [{"id": number, **msgspec.to_builtins(order)} for number, order in self._orders.items()]

    def clear(self) -> int:
        """Delete all orders. Returns how many there were."""
        count = len(self._orders)
        self._orders.clear()
        return count

    def take(self, operation: str, facts: Mapping[str, Any]) -> MatchedFaults:
        """The faults that this operation meets, the oldest orders first. Each is used up by one."""
        first: FaultOrder | None = None
        effects = Effects()
        for number, order in list(self._orders.items()):
            replaces_reply = order.fault not in EFFECT_FAULTS
            if not order.matches(operation, facts) or (replaces_reply and first is not None):
                continue
            if not self._use(number, order):
                continue
            if replaces_reply:
                first = order
            else:
                effects = _add_effect(effects, order)
        return MatchedFaults(order=first, effects=effects)

    def _use(self, number: int, order: FaultOrder) -> bool:
        if order.skip > 0:
            order.skip -= 1
            return False
        if order.times is not None:
            order.times -= 1
            if order.times == 0:
                del self._orders[number]
        return True


def _add_effect(effects: Effects, order: FaultOrder) -> Effects:
    code = order.code or "action_failed"
    match order.fault:
        case "slow_boot":
            return msgspec.structs.replace(effects, boot_delay_s=order.delay_s)
        case "dead_boot":
            return msgspec.structs.replace(effects, boot_dead=True)
        case "start_error":
            return msgspec.structs.replace(effects, fail_start_with=code)
        case other:
            assert other == "action_error", other
            return msgspec.structs.replace(effects, fail_with=code)


def refusal(order: FaultOrder, token: str) -> Reply:
    """The answer of a fault in `REFUSALS`."""
    usual_status, usual_code = REFUSALS[order.fault]
    status, code = order.status or usual_status, order.code or usual_code
    if order.fault == "gateway":
        # A gateway in front of the API knows nothing of its JSON.
        return Reply(status, b"<html><body><h1>Bad Gateway</h1></body></html>", {"content-type": "text/html"})
    # The message quotes a part of the token, as real ones do, so that tests show that it is not stored.
    message = f"{code.replace('_', ' ')} (token {token[:8]}...)"
    names_wait = order.retry_after_s is not None and status in {429, 503}
    headers = {"retry-after": str(order.retry_after_s)} if names_wait else {}
    return ApiError(status, code, message, headers=headers).reply()
