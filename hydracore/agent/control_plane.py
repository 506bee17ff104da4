"""The control plane as the agent sees it: seven calls, one error class per kind of answer.

ControlPlaneError
├── Unavailable         no answer, or 429, 502, 503, 504. The request may have been carried out all the same
├── BadAnswer           an answer that the protocol does not know, such as a 500 or a captive portal's page
├── Unauthorized        401: the token, signature or agent key is refused
├── Conflict            409: out of order (`expected_seq`), or about something that is settled already
└── Gone                410: this agent is no longer wanted
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

import httpx
import msgspec
import structlog

from hydracore.agent import messages as m
from hydracore.agent.backoff import Backoff
from hydracore.agent.errors import AgentError, DiskWriteFailed
from hydracore.agent.identity import Identity
from hydracore.json_input import JSON_ERRORS
from hydracore.transport import Answer, AnswerTooLarge, exchange, new_client

_log = structlog.get_logger(__name__)
T = TypeVar("T")

#: The longest that one request may take, connecting included.
TIMEOUT_S = 15.0

#: The largest answer that is read. The largest in use has a runtime configuration with its prompts.
ANSWER_BYTES_MAX = 2 * 1024 * 1024

#: Waits while the control plane is away: short enough to go on soon after it is back, long enough not to overload it.
RETRY_BASE_S = 0.25
RETRY_CAP_S = 30.0


class ControlPlaneError(AgentError):
    """`call` is the endpoint's last path parts, such as `secrets/ack`."""

    def __init__(self, call: str, what: str) -> None:
        super().__init__(f"{call}: {what}")
        self.call = call
        self.what = what


class Unavailable(ControlPlaneError):
    """`retry_after_s`: the wait that the answer asked for, if it did."""

    def __init__(self, call: str, what: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(call, what)
        self.retry_after_s = retry_after_s


class BadAnswer(ControlPlaneError):
    pass


class Unauthorized(ControlPlaneError):
    pass


class Conflict(ControlPlaneError):
    def __init__(self, call: str, *, expected_seq: int | None = None) -> None:
        super().__init__(call, "409")
        self.expected_seq = expected_seq


class Gone(ControlPlaneError):
    pass


class ControlPlane:
    """One HTTP client to the control plane at `url`. Each call makes one try and raises `ControlPlaneError`."""

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/')}/v1/agent/"
        self._client = new_client(tls=url.startswith("https:"), timeout_s=TIMEOUT_S)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def enroll(self, request: m.EnrollRequest) -> m.Enrolled:
        return await self._post("enroll", msgspec.json.encode(request), m.Enrolled)

    async def secrets(self, request: m.SecretsRequest, identity: Identity) -> m.Secrets:
        """The request is signed, over the exact bytes of its body, as the agent has no key yet."""
        body = msgspec.json.encode(request)
        return await self._post("secrets", body, m.Secrets, headers={"X-Agent-Signature": identity.sign(body)})

    async def acknowledge(self, agent_key: str, ack: m.SecretsAck) -> None:
        await self._post("secrets/ack", msgspec.json.encode(ack), dict, headers=_bearer(agent_key))

    async def callback(self, agent_key: str, callback: m.Callback) -> m.CallbackAccepted:
        """Returns an answer whose `seq` is one of those sent. Any other one raises `BadAnswer`."""
        body = msgspec.json.encode(callback)
        answer = await self._post("callback", body, m.CallbackAccepted, headers=_bearer(agent_key))
        if not callback.seq <= answer.seq <= callback.last_seq:
            raise BadAnswer("callback", f"200 for {answer.seq}, which was not sent")
        return answer

    async def heartbeat(self, agent_key: str, heartbeat: m.Heartbeat) -> m.HeartbeatReply:
        body = msgspec.json.encode(heartbeat)
        return await self._post("heartbeat", body, m.HeartbeatReply, headers=_bearer(agent_key))

    async def newest_config(self, agent_key: str, request: m.ConfigRequest) -> m.NewestConfig:
        return await self._post("config", msgspec.json.encode(request), m.NewestConfig, headers=_bearer(agent_key))

    async def usage(self, agent_key: str, batch: m.UsageBatch) -> m.UsageAccepted:
        """Returns an answer whose `seq` is the one that was sent. Any other one raises `BadAnswer`."""
        answer = await self._post("usage", msgspec.json.encode(batch), m.UsageAccepted, headers=_bearer(agent_key))
        if answer.seq != batch.seq:
            raise BadAnswer("usage", f"200 for {answer.seq}, which was not sent")
        return answer

    async def _post(self, call: str, body: bytes, answer_type: type[T], headers: dict[str, str] | None = None) -> T:
        request = self._client.build_request(
            "POST", self._url + call, content=body, headers={"Content-Type": "application/json", **(headers or {})}
        )
        try:
            answer = await exchange(self._client, request, timeout_s=TIMEOUT_S, answer_bytes_max=ANSWER_BYTES_MAX)
        except (httpx.HTTPError, TimeoutError) as error:
            raise Unavailable(call, type(error).__name__) from error
        except AnswerTooLarge as error:
            raise BadAnswer(call, "an answer that is too large") from error
        if answer.status != HTTPStatus.OK:
            raise _refusal(call, answer)
        try:
            return msgspec.json.decode(answer.content, type=answer_type)
        except JSON_ERRORS as error:
            raise BadAnswer(call, "200 with an unknown body") from error


def _bearer(agent_key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {agent_key}"}


def _refusal(call: str, answer: Answer) -> ControlPlaneError:
    """The error for an answer that is not a 200. Its body is untrusted text and is never quoted."""
    match answer.status:
        case 401:
            return Unauthorized(call, "401")
        case 409:
            return Conflict(call, expected_seq=_expected_seq(answer.content))
        case 410:
            return Gone(call, "410")
        case 429 | 502 | 503 | 504:
            return Unavailable(call, str(answer.status), retry_after_s=_retry_after_s(answer.headers))
        case _:
            return BadAnswer(call, str(answer.status))


def _expected_seq(content: bytes) -> int | None:
    try:
        return msgspec.json.decode(content, type=m.ErrorBody).expected_seq
    except JSON_ERRORS:
        return None


def _retry_after_s(headers: httpx.Headers) -> float | None:
    """Whole seconds only: the header's other form is a date, and the agent does not trust its wall clock."""
    value = headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else None


async def retry_transient(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat `call` while it fails for a reason that may pass. Any other error is raised for the caller to handle.

    After `Unavailable` and `BadAnswer` it is repeated for ever: the agent has nothing better to do, and
    all of its requests are idempotent. So it is after `DiskWriteFailed`, if `call` stores the answer: an agent
    that lives can report what is wrong, and goes on by itself once there is room.
    """
    backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
    while True:
        try:
            return await call()
        except (Unavailable, BadAnswer) as error:
            wait_s = retry_wait_s(error, backoff)
            _log.warning("control_plane_retry", call=error.call, what=error.what, wait_s=round(wait_s, 2))
        except DiskWriteFailed as error:
            wait_s = backoff.next_wait_s()
            _log.warning("disk_retry", what=error.what, wait_s=round(wait_s, 2))
        await asyncio.sleep(wait_s)


async def retry_until_stored(write: Callable[[], object]) -> None:
    """Call `write` until the disk does not refuse it. Other errors are raised."""

    async def call() -> None:
        write()

    await retry_transient(call)


def retry_wait_s(error: AgentError, backoff: Backoff) -> float:
    """The backoff's wait, or the longer one that the answer asked for, up to the cap."""
    asked_s = error.retry_after_s if isinstance(error, Unavailable) else None
    return max(backoff.next_wait_s(), min(asked_s or 0.0, RETRY_CAP_S))
