"""How to call an instance's agent: its address, the token that it accepts, and its errors as errors of the API."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

from events.lifecycle import RUNNING
from events.master_keys import MasterKeys
from events.state import Instance
from hydracore.agent_client import AGENT_PORT, AgentAddress, AgentBadAnswer, AgentClientError, AgentTimeout
from hydracore.api.errors import (
    AgentBusy,
    AgentFailed,
    AgentTooSlow,
    ApiError,
    BodyTooLarge,
    BudgetSpent,
    Conflict,
    RequestInvalid,
)
from hydracore.problems import Problem
from hydracore.tokens import held_control_token

UNREACHABLE: Final = "The agent cannot be reached"
NOT_REPORTING: Final = "The agent cannot be reached: it has not reported lately; try again once it is healthy"
TOO_SLOW: Final = "The agent did not answer in time"
KEY_CHANGING: Final = "The agent refuses the call while its key is being changed; try again"
INVALID_ANSWER: Final = "The agent sent an invalid answer"

#: The agent's own errors, by their code. Their texts are meant for people, and contain no secrets.
_BY_CODE: Final[dict[str, type[ApiError]]] = {
    "budget_spent": BudgetSpent,
    "idempotency_mismatch": Conflict,
    "draining": AgentBusy,
    "busy": AgentBusy,
    "not_serving": AgentBusy,
    "interrupted": AgentBusy,
    "model_failed": AgentFailed,
    "model_timeout": AgentTooSlow,
}


def address_of(state: Instance, *, master_keys: MasterKeys) -> AgentAddress | None:
    """Where to call the agent of a running instance; None where there is no agent to call."""
    agent = state.agent
    if state.status != RUNNING or state.vpn_ip is None or agent is None or agent.control_key_id is None:
        return None
    token = held_control_token(master_keys, state.id, agent.control_key_id, key_hash=agent.control_key_hash)
    return AgentAddress(state.vpn_ip, AGENT_PORT, token)


def require_address(state: Instance, *, master_keys: MasterKeys) -> AgentAddress:
    """The agent's address. Raises `Conflict` unless the instance runs, and `AgentFailed` if it is unreachable."""
    address = address_of(state, master_keys=master_keys)
    if address is None:
        raise Conflict(f"The instance is {state.status}, but must be running for this")
    if state.health == "unreachable":
        # A call could occupy a connection for minutes. The agent's next heartbeat makes it reachable again.
        raise AgentFailed(NOT_REPORTING)
    return address


@contextmanager
def agent_errors_translated() -> Generator[None]:
    """Raise an `AgentClientError` as the error that the caller may see."""
    try:
        yield
    except AgentClientError as error:
        raise api_error_of(error) from error


def code_of(error: AgentClientError) -> str:
    """The code of `error` in a stream: the agent's own code, or one of ours."""
    if isinstance(error, AgentTimeout):
        return "agent_timeout"
    if isinstance(error, AgentBadAnswer) and error.code in _BY_CODE:
        return error.code
    return "agent_failed"


def api_error_of(error: AgentClientError) -> ApiError:
    """The error that the caller sees for `error`."""
    if isinstance(error, AgentTimeout):
        return AgentTooSlow(TOO_SLOW)
    if not isinstance(error, AgentBadAnswer):
        return AgentFailed(UNREACHABLE)
    known = _BY_CODE.get(error.code or "")
    if known is not None:
        return known(error.detail or INVALID_ANSWER)
    match error.status:
        case HTTPStatus.UNAUTHORIZED:
            return AgentFailed(KEY_CHANGING)
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return BodyTooLarge("The message is too large for the agent")
        case HTTPStatus.UNPROCESSABLE_ENTITY:
            return RequestInvalid([Problem(("body",), "Value error, the agent rejects this", "value_error")])
        case HTTPStatus.SERVICE_UNAVAILABLE:
            return AgentBusy("The agent is busy; try again")
        case HTTPStatus.GATEWAY_TIMEOUT:
            return AgentTooSlow(TOO_SLOW)
        case _:
            return AgentFailed(INVALID_ANSWER)
