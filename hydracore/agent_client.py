"""The control plane's HTTP client of agents: their status, configuration, chats and conversations.

AgentClientError
├── AgentUnreachable      the connection failed or broke off
├── AgentTimeout          no complete answer in time
└── AgentBadAnswer        an unexpected answer; `status` is its HTTP status
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from structlog.contextvars import get_contextvars

from hydracore.agent.chat_messages import RunningConfig, UpdatesApplied
from hydracore.agent.messages import AgentStatus, Drained
from hydracore.agent_answers import (
    ANSWER_BYTES_MAX,
    CHAT_BYTES_MAX,
    CONFIG_BYTES_MAX,
    CONVERSATION_BYTES_MAX,
    MaskedConfig,
    read_masked_config,
    read_problem,
)
from hydracore.json_input import JSON_ERRORS, require_object
from hydracore.media_types import EVENT_STREAM, media_type
from hydracore.transport import (
    CONNECT_TIMEOUT_S,
    CONNECTIONS_KEPT,
    Answer,
    AnswerTooLarge,
    exchange,
    new_client,
    read_answer,
)

T = TypeVar("T")

#: Where every agent listens, on its VPN address.
AGENT_PORT: Final = 7400

#: The most connections to all agents together. A chat holds one until its answer is complete.
CONNECTIONS_MAX: Final = 4096


class AgentClientError(Exception):
    """Root. The text names the address and the kind of failure, never what the peer sent and never a token."""


class AgentUnreachable(AgentClientError):
    pass


class AgentTimeout(AgentClientError):
    pass


class AgentBadAnswer(AgentClientError):
    """`code` (for programs) and `detail` (for people) come from the agent; None if its answer had none."""

    def __init__(self, message: str, *, status: int, code: str | None = None, detail: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.detail = detail


class AgentAddress(NamedTuple):
    """`host` must be an address that we allocated ourselves, never one from a caller of the API."""

    host: str
    port: int
    control_token: str

    def __str__(self) -> str:
        return f"Agent at {self.host} port {self.port}"


class AgentClient:
    """A client for a whole process, with a pool of connections to all agents. Every method raises `AgentClientError`.

    `timeout_s` bounds each call as a whole, unless the call has a `timeout_s` itself.
    `connections_kept`: the most idle connections, kept for further calls to the same agents. It
    should be 0 if each agent is called once, as httpx looks at all idle ones per call.
    """

    def __init__(self, timeout_s: float, *, connections_kept: int = CONNECTIONS_KEPT) -> None:
        self._timeout_s = timeout_s
        # Plain HTTP: the addresses are inside the VPN, which encrypts and authenticates.
        self._client = new_client(
            tls=False, timeout_s=timeout_s, connections_max=CONNECTIONS_MAX, connections_kept=connections_kept
        )

    async def status(self, agent: AgentAddress, *, timeout_s: float | None = None) -> AgentStatus:
        """The agent's status."""
        request = self._request("GET", "/api/status", agent)
        return _decoded(agent, await self._call(agent, request, timeout_s), AgentStatus)

    async def drain(self, agent: AgentAddress, *, cut: bool = False, timeout_s: float | None = None) -> Drained:
        """Have the agent take no new chats. Idempotent.

        `cut`: have it also end the open ones, and send their usage before it answers, which takes
        some seconds at most. An agent of an earlier release ignores `cut`.
        """
        request = self._request("POST", "/api/drain", agent, body={"cut": True} if cut else None)
        return _decoded(agent, await self._call(agent, request, timeout_s), Drained)

    async def chat(
        self,
        agent: AgentAddress,
        body: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """The complete answer, a JSON object as it came. Cancelling this ends the chat."""
        request = self._request("POST", "/api/chat", agent, body=body, headers=_idempotency_header(idempotency_key))
        return _json_object(agent, await self._call(agent, request, timeout_s, bytes_max=CHAT_BYTES_MAX))

    @asynccontextmanager
    async def chat_stream(
        self,
        agent: AgentAddress,
        body: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        idle_timeout_s: float,
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """The answer as server-sent events, in raw bytes as they come. Leaving the block ends the chat.

        Entering the block raises `AgentBadAnswer` if the agent refuses, or fails as `chat` does. The iterator raises
        `AgentUnreachable` if the answer breaks off, and `AgentTimeout` after a silence of `idle_timeout_s`.
        """
        headers = {"Accept": EVENT_STREAM, **_idempotency_header(idempotency_key)}
        request = self._request("POST", "/api/chat", agent, body=body, headers=headers)
        with _translated_errors(agent, idle_timeout_s):
            async with asyncio.timeout(idle_timeout_s):
                response = await self._client.send(request, stream=True)
        try:
            if response.status_code != HTTPStatus.OK:
                with _translated_errors(agent, idle_timeout_s):
                    async with asyncio.timeout(idle_timeout_s):
                        raise _refusal(agent, await read_answer(response, answer_bytes_max=ANSWER_BYTES_MAX))
            if media_type(response.headers.get("content-type", "")) != EVENT_STREAM:
                raise AgentBadAnswer(f"{agent}: no event stream", status=response.status_code)
            yield _chunks(agent, response, idle_timeout_s)
        finally:
            await response.aclose()

    async def get_config(self, agent: AgentAddress, *, timeout_s: float | None = None) -> MaskedConfig:
        """The configuration that the agent runs, with secrets masked."""
        request = self._request("GET", "/api/config", agent)
        answer = await self._call(agent, request, timeout_s, bytes_max=CONFIG_BYTES_MAX)
        return _read(agent, answer, read_masked_config)

    async def put_config(
        self, agent: AgentAddress, version: int, runtime: Mapping[str, Any], *, timeout_s: float | None = None
    ) -> RunningConfig:
        """Have the agent run this configuration, unless it has a newer one. Returns which version it runs now."""
        request = self._request("PUT", "/api/config", agent, body={"config_version": version, "runtime": runtime})
        return _decoded(agent, await self._call(agent, request, timeout_s), RunningConfig)

    async def conversations(self, agent: AgentAddress, limit: int, *, timeout_s: float | None = None) -> bytes:
        """The newest conversations, a JSON object as it came."""
        request = self._request("GET", "/api/conversations", agent, query={"limit": str(limit)})
        return _json_object(agent, await self._call(agent, request, timeout_s))

    async def conversation(self, agent: AgentAddress, conversation_id: str, *, timeout_s: float | None = None) -> bytes:
        """One conversation with its messages, a JSON object as it came. If there is none: `AgentBadAnswer` with 404."""
        request = self._request("GET", f"/api/conversations/{quote(conversation_id, safe='')}", agent)
        return _json_object(agent, await self._call(agent, request, timeout_s, bytes_max=CONVERSATION_BYTES_MAX))

    async def apply_updates(
        self,
        agent: AgentAddress,
        version: int,
        runtime: Mapping[str, Any],
        *,
        restart: bool,
        timeout_s: float | None = None,
    ) -> UpdatesApplied:
        """Have the agent run this configuration. `restart`: and restart its runtime, after some wait for open chats."""
        body = {"config_version": version, "runtime": runtime, "restart": restart}
        request = self._request("POST", "/api/updates/apply", agent, body=body)
        return _decoded(agent, await self._call(agent, request, timeout_s), UpdatesApplied)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _request(
        self,
        method: str,
        path: str,
        agent: AgentAddress,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Request:
        url = httpx.URL(scheme="http", host=agent.host, port=agent.port, path=path)
        return self._client.build_request(
            method,
            url if query is None else url.copy_with(params=query),
            content=None if body is None else msgspec.json.encode(body),
            headers={
                "Authorization": f"Bearer {agent.control_token}",
                **({} if body is None else {"Content-Type": "application/json"}),
                **_request_id_header(),
                **(headers or {}),
            },
            # Each call is bounded as a whole, whatever its parts take.
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
        )

    async def _call(
        self, agent: AgentAddress, request: httpx.Request, timeout_s: float | None, *, bytes_max: int = ANSWER_BYTES_MAX
    ) -> Answer:
        """Send `request` and return an answer with status 200. Any other status raises `AgentBadAnswer`."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        with _translated_errors(agent, limit_s):
            answer = await exchange(self._client, request, timeout_s=limit_s, answer_bytes_max=bytes_max)
        if answer.status != HTTPStatus.OK:
            raise _refusal(agent, answer)
        return answer


@contextmanager
def _translated_errors(agent: AgentAddress, timeout_s: float) -> Generator[None]:
    """Raise an `AgentClientError` in place of errors of the transport."""
    try:
        yield
    except (TimeoutError, httpx.TimeoutException) as error:
        raise AgentTimeout(f"{agent}: no answer within {timeout_s:g} s") from error
    except AnswerTooLarge as error:
        raise AgentBadAnswer(f"{agent}: an answer that is too large", status=error.status) from error
    except httpx.HTTPError as error:
        raise AgentUnreachable(f"{agent}: {type(error).__name__}") from error


async def _chunks(agent: AgentAddress, response: httpx.Response, idle_timeout_s: float) -> AsyncGenerator[bytes]:
    chunks = response.aiter_raw()
    while True:
        with _translated_errors(agent, idle_timeout_s):
            try:
                async with asyncio.timeout(idle_timeout_s):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
        yield chunk


def _request_id_header() -> dict[str, str]:
    """A header with the id of the request that is being served, which the agent logs, too. A worker serves none."""
    request_id = get_contextvars().get("request_id")
    return {} if request_id is None else {"X-Request-Id": request_id}


def _idempotency_header(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


def _refusal(agent: AgentAddress, answer: Answer) -> AgentBadAnswer:
    code, detail = read_problem(answer.content)
    return AgentBadAnswer(f"{agent}: HTTP status {answer.status}", status=answer.status, code=code, detail=detail)


def _decoded(agent: AgentAddress, answer: Answer, answer_type: type[T]) -> T:
    return _read(agent, answer, lambda content: msgspec.json.decode(content, type=answer_type))


def _json_object(agent: AgentAddress, answer: Answer) -> bytes:
    """The answer as it came. It is checked to be a JSON object."""
    _read(agent, answer, require_object)
    return answer.content


def _read(agent: AgentAddress, answer: Answer, read: Callable[[bytes], T]) -> T:
    """What `read` makes of the answer. `read` raises one of `JSON_ERRORS` for an unexpected body."""
    try:
        return read(answer.content)
    except JSON_ERRORS as error:
        raise AgentBadAnswer(f"{agent}: an unknown body", status=answer.status) from error
