"""What can go wrong with a request, and how every error looks on the wire: `{"detail": ...}`.

    ApiError
    ├── Unauthorized       401  the caller is not authenticated
    ├── BudgetSpent        402  the instance's budget for the day or the month is used up
    ├── Forbidden          403  another customer's instance in the same tenant, or the caller may not do this
    ├── NotFound           404  it does not exist or is another tenant's: both have the same answer
    ├── BodyTimeout        408  the body did not arrive in time
    ├── Conflict           409  not possible in the present state
    ├── Gone               410  the agent's instance, attempt or boot is over
    ├── PreconditionFailed 412  the configuration is at another version than the caller has seen
    ├── BodyTooLarge       413
    ├── RequestInvalid     422  with every problem of the request
    ├── TooManyRequests    429  above the rate limit
    ├── AgentFailed        502  the agent cannot be reached, or failed
    ├── AgentBusy          503  the agent accepts no new work at the moment
    ├── Interrupted        503  this process stops before the request has ended
    └── AgentTooSlow       504  the agent, or its model, did not answer in time

The write side's errors (`events.errors`) are translated here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar, Final, NamedTuple

import psycopg
import structlog
from litestar.exceptions import HTTPException
from psycopg_pool import PoolTimeout

from events import errors as e
from hydracore.agent_client import AgentClientError
from hydracore.auth import AuthError
from hydracore.problems import Invalid, Problem

_log = structlog.get_logger(__name__)

#: The `Retry-After` when the database is unavailable or an agent accepts no new work: about as long as a restart takes.
RETRY_AFTER_S = 2
_RETRY_AFTER: Final = ((b"retry-after", b"%d" % RETRY_AFTER_S),)

#: The most problems that an answer lists, and the most characters of each name in their paths. Each problem has the whole
#: path to its value, so without limits the answer could be ten thousand times as large as the request.
PROBLEMS_MAX: Final = 100
NAME_SHOWN_MAX: Final = 100

_UNAVAILABLE: Final = "Temporarily unavailable; try again"

#: Where and why it cannot be read is only in our own log, for the operator.
_HISTORY_UNREADABLE: Final = "The history of this instance cannot be read"


class ApiError(Exception):
    """Root. `str()` is shown to the caller."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    #: The name of its event in our log, for statuses from 500 on.
    log_event: ClassVar[str] = "agent_did_not_serve"
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Unauthorized(ApiError):
    status = HTTPStatus.UNAUTHORIZED


class BudgetSpent(ApiError):
    status = HTTPStatus.PAYMENT_REQUIRED


class Forbidden(ApiError):
    status = HTTPStatus.FORBIDDEN


class NotFound(ApiError):
    status = HTTPStatus.NOT_FOUND


class BodyTimeout(ApiError):
    status = HTTPStatus.REQUEST_TIMEOUT


class Conflict(ApiError):
    status = HTTPStatus.CONFLICT


class Gone(ApiError):
    status = HTTPStatus.GONE


class PreconditionFailed(ApiError):
    status = HTTPStatus.PRECONDITION_FAILED


class BodyTooLarge(ApiError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class RequestInvalid(ApiError):
    status = HTTPStatus.UNPROCESSABLE_ENTITY

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("The request is invalid")
        self.problems = problems


class TooManyRequests(ApiError):
    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"Too many requests; try again in {retry_after_s} s")
        self.headers = ((b"retry-after", b"%d" % retry_after_s),)


class AgentFailed(ApiError):
    status = HTTPStatus.BAD_GATEWAY


class AgentBusy(ApiError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    headers = _RETRY_AFTER


class Interrupted(ApiError):
    """Raised when a request's task is cancelled, which the server does only when it stops."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    headers = _RETRY_AFTER
    log_event = "request_not_served"

    def __init__(self) -> None:
        super().__init__(_UNAVAILABLE)


class AgentTooSlow(ApiError):
    status = HTTPStatus.GATEWAY_TIMEOUT


class ClientGone(Exception):
    """The client closed the connection before its request was complete, so no answer can be sent."""


class ErrorAnswer(NamedTuple):
    """An error answer. `body` becomes JSON."""

    status: int
    body: dict[str, Any]
    headers: tuple[tuple[bytes, bytes], ...] = ()


def error_answer_of(error: Exception) -> ErrorAnswer:
    """The answer to a request that ended with `error`. Logs answers with a status from 500 on.

    The answer to an unexpected error is a 500 without details.
    """
    if isinstance(error, Invalid | RequestInvalid):
        return ErrorAnswer(HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": [*map(_shown, error.problems[:PROBLEMS_MAX])]})
    if isinstance(error, AuthError | Unauthorized):
        return ErrorAnswer(HTTPStatus.UNAUTHORIZED, {"detail": str(error)}, ((b"www-authenticate", b"Bearer"),))
    if isinstance(error, ApiError):
        if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.warning(error.log_event, status=int(error.status), reason=str(error), cause=_agent_error_text(error))
        return ErrorAnswer(error.status, {"detail": str(error)}, error.headers)
    if isinstance(error, e.EventsError):
        return _answer_of_events_error(error)
    if isinstance(error, HTTPException):
        return ErrorAnswer(error.status_code, {"detail": _status_phrase(error)}, _encoded_headers(error.headers))
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | PoolTimeout):
        return _unavailable(error)
    if not isinstance(error, ClientGone):
        _log.error("request_failed", exc_info=error)
    return ErrorAnswer(HTTPStatus.INTERNAL_SERVER_ERROR, {"detail": "Internal server error"})


def _answer_of_events_error(error: e.EventsError) -> ErrorAnswer:
    detail = {"detail": str(error)}
    match error:
        case e.NotFound():
            return ErrorAnswer(HTTPStatus.NOT_FOUND, detail)
        case e.SequenceGap():
            return ErrorAnswer(HTTPStatus.CONFLICT, {**detail, "expected_seq": error.expected_seq})
        case e.RequestMismatch() | e.TransitionRefused() | e.KeyNotPending() | e.CustomerErased():
            return ErrorAnswer(HTTPStatus.CONFLICT, detail)
        case e.AttemptSuperseded() | e.BootSuperseded():
            return ErrorAnswer(HTTPStatus.GONE, detail)
        case e.AgentDraining():
            # Info and not a warning, because it happens during every deletion.
            facts = {"instance_id": str(error.instance_id), "status": int(HTTPStatus.SERVICE_UNAVAILABLE)}
            _log.info("agent_must_wait", reason=str(error), cause=None, **facts)
            return ErrorAnswer(HTTPStatus.SERVICE_UNAVAILABLE, detail, _RETRY_AFTER)
        case e.TokenRefused():
            return ErrorAnswer(HTTPStatus.UNAUTHORIZED, detail, ((b"www-authenticate", b"Bearer"),))
        case e.Rejected():
            problem = {"loc": ["body"], "msg": f"Value error, {error.reason}", "type": "value_error"}
            return ErrorAnswer(HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": [problem]})
        case e.StoreUnavailable() | e.VersionConflict():
            return _unavailable(error)
        case e.LogCorrupted():
            _log.error("request_failed", lane=error.lane, seq=error.seq, exc_info=error)
            return ErrorAnswer(HTTPStatus.INTERNAL_SERVER_ERROR, {"detail": _HISTORY_UNREADABLE})
        case e.EventUnreadable():
            _log.error("request_failed", exc_info=error)
            return ErrorAnswer(HTTPStatus.INTERNAL_SERVER_ERROR, {"detail": _HISTORY_UNREADABLE})
        case _:
            _log.error("request_failed", exc_info=error)
            return ErrorAnswer(HTTPStatus.INTERNAL_SERVER_ERROR, {"detail": "Internal server error"})


def _unavailable(error: Exception) -> ErrorAnswer:
    """The answer when the outcome is unknown. Repeating the request is safe, because commands have ids."""
    # The texts of other errors are not logged, because they may quote a row.
    reason = str(error) if isinstance(error, e.EventsError) else None
    _log.warning("request_not_served", error=type(error).__name__, reason=reason)
    return ErrorAnswer(HTTPStatus.SERVICE_UNAVAILABLE, {"detail": _UNAVAILABLE}, _RETRY_AFTER)


def _agent_error_text(error: ApiError) -> str | None:
    """The text of an `AgentClientError`: the agent's address and the kind of failure, and nothing that the agent sent."""
    return str(error.__cause__) if isinstance(error.__cause__, AgentClientError) else None


def _shown(problem: Problem) -> dict[str, Any]:
    loc = [step[:NAME_SHOWN_MAX] if isinstance(step, str) else step for step in problem.loc]
    return {"loc": loc, "msg": problem.msg, "type": problem.type}


def _status_phrase(error: HTTPException) -> str:
    """The phrase of an error's status (404 for a path, 405). The framework's own texts name internals."""
    return HTTPStatus(error.status_code).phrase


def _encoded_headers(headers: Mapping[str, Any] | None) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.lower().encode(), str(value).encode()) for name, value in (headers or {}).items())
