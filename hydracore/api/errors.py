"""What can go wrong with a request, and how every error looks on the wire: `{"detail": ...}`.

    ApiError
    ├── Unauthorized       401  nobody credible is asking
    ├── BudgetSpent        402  the instance may spend no more today, or this month
    ├── Forbidden          403  somebody else's, of the same tenant; or not theirs to do
    ├── NotFound           404  absent, or another tenant's: both look the same
    ├── BodyTimeout        408  the body did not come in time
    ├── Conflict           409  not in this state
    ├── Gone               410  an agent that is no longer wanted
    ├── BodyTooLarge       413
    ├── RequestInvalid     422  every problem of the request
    ├── TooManyRequests    429  more often than anybody may ask
    ├── AgentFailed        502  the agent cannot be reached, or could not do it
    ├── AgentBusy          503  the agent takes nothing new for a moment
    ├── Interrupted        503  this process stops, and cannot wait for the end of it
    └── AgentTooSlow       504  the agent, or the model behind it, did not answer in time

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
from hydracore.auth import AuthError
from hydracore.problems import Invalid, Problem
from hydracore.vps import VpsError

_log = structlog.get_logger(__name__)

#: What a client is told to wait when the database is away or an agent takes nothing new; a restart takes about that.
RETRY_AFTER_S = 2
_RETRY_AFTER: Final = ((b"retry-after", b"%d" % RETRY_AFTER_S),)

#: Of a request with more problems, the first ones are told, and of a longer name its beginning: each problem has the whole path of where
#: it is, so that all of them could be ten thousand times as large as the request.
PROBLEMS_MAX: Final = 100
NAME_SHOWN_MAX: Final = 100

_UNAVAILABLE: Final = "Temporarily unavailable; try again"

#: Where it cannot be read, and why, is for those who run this: our log says it.
_HISTORY_UNREADABLE: Final = "The history of this instance cannot be read"


class ApiError(Exception):
    """Root. `str()` is shown to the caller."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    #: What the log calls it, for statuses from 500 on.
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
    """Raised in place of the cancellation of a request's task, which only the server does, as it stops."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    headers = _RETRY_AFTER
    log_event = "request_not_served"

    def __init__(self) -> None:
        super().__init__(_UNAVAILABLE)


class AgentTooSlow(ApiError):
    status = HTTPStatus.GATEWAY_TIMEOUT


class ClientGone(Exception):
    """The client closed the connection before its request was whole. There is nobody to answer."""


class Failure(NamedTuple):
    """An error answer. `body` becomes JSON."""

    status: int
    body: dict[str, Any]
    headers: tuple[tuple[bytes, bytes], ...] = ()


def failure_of(error: Exception) -> Failure:
    """The answer to a request that ended in `error`. What nobody expected is logged and told as a bare 500; every
    other answer above it is logged in a line of its own."""
    if isinstance(error, Invalid | RequestInvalid):
        return Failure(HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": [*map(_shown, error.problems[:PROBLEMS_MAX])]})
    if isinstance(error, AuthError | Unauthorized):
        return Failure(HTTPStatus.UNAUTHORIZED, {"detail": str(error)}, ((b"www-authenticate", b"Bearer"),))
    if isinstance(error, ApiError):
        if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.warning(error.log_event, status=int(error.status), reason=str(error), cause=_cause(error))
        return Failure(error.status, {"detail": str(error)}, error.headers)
    if isinstance(error, e.EventsError):
        return _failure_of_write_side(error)
    if isinstance(error, HTTPException):
        return Failure(error.status_code, {"detail": _phrase(error)}, _encoded(error.headers))
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | PoolTimeout):
        return _unavailable(error)
    if not isinstance(error, ClientGone):
        _log.error("request_failed", exc_info=error)
    return Failure(HTTPStatus.INTERNAL_SERVER_ERROR, {"detail": "Internal server error"})


def _failure_of_write_side(error: e.EventsError) -> Failure:
    detail = {"detail": str(error)}
    match error:
        case e.NotFound():
            return Failure(HTTPStatus.NOT_FOUND, detail)
        case e.SequenceGap():
            return Failure(HTTPStatus.CONFLICT, {**detail, "expected_seq": error.expected_seq})
        case e.RequestMismatch() | e.TransitionRefused() | e.KeyNotPending() | e.CustomerErased():
            return Failure(HTTPStatus.CONFLICT, detail)
        case e.AttemptSuperseded() | e.BootSuperseded():
            return Failure(HTTPStatus.GONE, detail)
        case e.AgentDraining():
            # Each deletion has some of these.
            facts = {"instance_id": str(error.instance_id), "status": int(HTTPStatus.SERVICE_UNAVAILABLE)}
            _log.info("agent_must_wait", reason=str(error), cause=None, **facts)
            return Failure(HTTPStatus.SERVICE_UNAVAILABLE, detail, _RETRY_AFTER)
        case e.TokenRefused():
            return Failure(HTTPStatus.UNAUTHORIZED, detail, ((b"www-authenticate", b"Bearer"),))
        case e.Rejected():
            problem = {"loc": ["body"], "msg": f"Value error, {error.reason}", "type": "value_error"}
            return Failure(HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": [problem]})
        case e.StoreUnavailable() | e.VersionConflict():
            return _unavailable(error)
        case e.LogCorrupted():
            _log.error("request_failed", lane=error.lane, seq=error.seq, exc_info=error)
            return Failure(HTTPStatus.INTERNAL_SERVER_ERROR, {"detail": _HISTORY_UNREADABLE})
        case e.EventUnreadable():
            _log.error("request_failed", exc_info=error)
            return Failure(HTTPStatus.INTERNAL_SERVER_ERROR, {"detail": _HISTORY_UNREADABLE})
        case _:
            _log.error("request_failed", exc_info=error)
            return Failure(HTTPStatus.INTERNAL_SERVER_ERROR, {"detail": "Internal server error"})


def _unavailable(error: Exception) -> Failure:
    """Nothing is known to have happened; commands carry an id, so that asking again is safe."""
    # Texts of foreign errors are not logged: they may quote a row.
    reason = str(error) if isinstance(error, e.EventsError) else None
    _log.warning("request_not_served", error=type(error).__name__, reason=reason)
    return Failure(HTTPStatus.SERVICE_UNAVAILABLE, {"detail": _UNAVAILABLE}, _RETRY_AFTER)


def _cause(error: ApiError) -> str | None:
    """What a `VpsError` says: where the agent was looked for and what kind of trouble there was, and nothing that it sent."""
    return str(error.__cause__) if isinstance(error.__cause__, VpsError) else None


def _shown(problem: Problem) -> dict[str, Any]:
    loc = [step[:NAME_SHOWN_MAX] if isinstance(step, str) else step for step in problem.loc]
    return {"loc": loc, "msg": problem.msg, "type": problem.type}


def _phrase(error: HTTPException) -> str:
    """The framework's own errors (404 for a path, 405) in plain words: its texts name internals."""
    return HTTPStatus(error.status_code).phrase


def _encoded(headers: Mapping[str, Any] | None) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.lower().encode(), str(value).encode()) for name, value in (headers or {}).items())
