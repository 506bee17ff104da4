"""One HTTP conversation with the Hetzner API: paced, bounded in time and number, and silent about secrets.

httpx errors are translated here, once. They are not chained to ours: theirs hold the request, and with it the token.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, Protocol, TypeVar

import httpx

from hydracore.reading import UNREADABLE
from hydracore.transport import TRUST_NOBODY, Answer, AnswerTooLarge, read_answer
from workers.providers.base import ProviderError, ProviderOutcomeUnknown, ProviderRetry
from workers.providers.hetzner_errors import UNREADABLE_ANSWER, correlation_id_in, error_of
from workers.providers.hetzner_pacing import Pacer

#: Calls of one driver under way at the same time.
CONCURRENCY_MAX: Final = 16

#: Far more than a page of servers has, with all that is told of the type, the image and the place of each.
ANSWER_MAX_BYTES: Final = 4 * 1024 * 1024

#: Of its time: a call without an answer that has taken less was refused or cut off, which costs nobody anything.
COSTLY_SHARE: Final = 0.25

#: Idle connections are given up before the provider does it, so that few calls meet a connection that is just closing.
KEEPALIVE_S: Final = 3.0

#: These fail before a request is on its way; after any other failure it may have arrived.
NOT_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)

Query = Mapping[str, str | int | list[str]]
Answer_co = TypeVar("Answer_co", covariant=True)


class _Decoder(Protocol[Answer_co]):
    def decode(self, body: bytes, /) -> Answer_co: ...


class HetznerHttp:
    """The connection pool of one driver. `endpoint` ends before the resource, for instance in `/v1`."""

    def __init__(self, endpoint: str, token: str, *, timeout_s: float) -> None:
        outside = endpoint.startswith("https:")
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(CONCURRENCY_MAX)
        self._pacer = Pacer(monotonic=time.monotonic, wall=time.time)
        self._client = httpx.AsyncClient(
            base_url=endpoint.rstrip("/") + "/",
            # A packed answer could be small on the wire and huge in memory, so none is asked for, and none is unpacked.
            headers={
                "Authorization": f"Bearer {token}",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
            },
            # Half of the time for connecting, so that "not sent" is told apart from "no answer".
            timeout=httpx.Timeout(timeout_s, connect=timeout_s / 2),
            limits=httpx.Limits(max_connections=CONCURRENCY_MAX, keepalive_expiry=KEEPALIVE_S),
            # A proxy of the environment is for the world outside; a cloudsim on this machine is not behind it.
            trust_env=outside,
            verify=True if outside else TRUST_NOBODY,
        )

    async def get(self, path: str, answer: _Decoder[Answer_co], query: Query | None = None) -> Answer_co:
        """Read something."""
        return await self._call("GET", path, answer, query=query)

    async def change(
        self, method: str, path: str, answer: _Decoder[Answer_co], body: Mapping[str, Any] | None = None
    ) -> Answer_co:
        """Change something. Raises `ProviderOutcomeUnknown` when the change may have happened and no answer says so."""
        assert method in {"POST", "PUT", "DELETE"}
        return await self._call(method, path, answer, body=body)

    def refuse_if_silent(self) -> None:
        """Raises `ProviderRetry` while the provider is left alone, because it does not answer."""
        self._pacer.refuse_if_silent()

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _call(
        self,
        method: str,
        path: str,
        answer: _Decoder[Answer_co],
        *,
        query: Query | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Answer_co:
        mutation = method != "GET"
        request = self._client.build_request(method, path, params=query, json=body)
        self.refuse_if_silent()
        async with self._place():
            await self._pacer.turn(patience_s=self._timeout_s)
            response = await self._send(request, mutation=mutation)
        retry_after_s = self._pacer.learn(status=response.status, headers=response.headers)
        correlation_id = response.headers.get("x-correlation-id")
        if not httpx.codes.is_success(response.status):
            raise error_of(
                status=response.status,
                body=response.content,
                correlation_id=correlation_id,
                mutation=mutation,
                retry_after_s=retry_after_s,
            )
        with contextlib.suppress(*UNREADABLE):
            return answer.decode(response.content)
        # Outside of the handler, so that the decoder's error, which may quote the body, is not chained to this one.
        raise _unanswered(UNREADABLE_ANSWER, mutation=mutation, correlation_id=correlation_id_in(correlation_id))

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncGenerator[None]:
        """One of the calls under way. Raises `ProviderRetry` where none has ended in the time of a call."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._places.acquire()
        except TimeoutError:
            raise ProviderRetry("too_many_calls") from None
        try:
            yield
        finally:
            self._places.release()

    async def _send(self, request: httpx.Request, *, mutation: bool) -> Answer:
        """The answer. `timeout` of httpx bounds each read; the deadline around it bounds a provider that trickles."""
        sent_at = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._exchange(request)
        except NOT_SENT:
            failure: ProviderError = ProviderRetry("not_connected")
        except (TimeoutError, httpx.TimeoutException):
            failure = _unanswered("no_answer_in_time", mutation=mutation)
        except httpx.HTTPError:
            failure = _unanswered("connection_broke", mutation=mutation)
        except AnswerTooLarge:
            self._pacer.heard()
            failure = _unanswered(UNREADABLE_ANSWER, mutation=mutation)
        else:
            self._pacer.heard()
            return answer
        if time.monotonic() - sent_at < self._timeout_s * COSTLY_SHARE:
            self._pacer.heard()
        else:
            self._pacer.silent(since=sent_at)
        raise failure

    async def _exchange(self, request: httpx.Request) -> Answer:
        response = await self._client.send(request, stream=True)
        try:
            return await read_answer(response, answer_max_bytes=ANSWER_MAX_BYTES)
        finally:
            await response.aclose()


def _unanswered(code: str, *, mutation: bool, correlation_id: str | None = None) -> ProviderError:
    return ProviderOutcomeUnknown(code, correlation_id) if mutation else ProviderRetry(code, correlation_id)
