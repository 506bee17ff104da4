"""HTTP calls to the Hetzner API: paced, limited in time and in number, and without secrets in errors.

The errors of httpx are translated here, and not chained to ours: they hold the request, and with it the token.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, Protocol, TypeVar

import httpx

from hydracore.json_input import JSON_ERRORS
from hydracore.transport import EMPTY_TRUST_STORE, Answer, AnswerTooLarge, read_answer
from workers.providers.base import ProviderError, ProviderOutcomeUnknown, ProviderRetry
from workers.providers.hetzner_errors import UNREADABLE_ANSWER, correlation_id_in, error_of
from workers.providers.hetzner_pacing import Pacer

#: The most concurrent calls of one driver.
CONCURRENCY_MAX: Final = 16

#: The most bytes of an answer. A page of servers, with their types, images and locations, is far smaller.
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024

#: The share of its time limit from which on a failed call counts as silence of the provider. A call that fails earlier was refused or
#: cut off, and held nobody up.
COSTLY_SHARE: Final = 0.25

#: How long idle connections are kept: less than the provider keeps them, so that few calls use a connection that is just being closed.
KEEPALIVE_S: Final = 3.0

#: The errors that are raised before a request is sent. After any other error, it may have arrived.
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
        self._slots = asyncio.Semaphore(CONCURRENCY_MAX)
        self._pacer = Pacer(monotonic=time.monotonic, wall=time.time)
        self._client = httpx.AsyncClient(
            base_url=endpoint.rstrip("/") + "/",
            # A compressed answer could be small on the wire and huge in memory. So none is requested, and none is decompressed.
            headers={
                "Authorization": f"Bearer {token}",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
            },
            # Half of the time for connecting, so that "not sent" can be told from "no answer".
            timeout=httpx.Timeout(timeout_s, connect=timeout_s / 2),
            limits=httpx.Limits(max_connections=CONCURRENCY_MAX, keepalive_expiry=KEEPALIVE_S),
            # A proxy in the environment is for hosts outside, not for a cloudsim on this machine.
            trust_env=outside,
            verify=True if outside else EMPTY_TRUST_STORE,
        )

    async def get(self, path: str, answer: _Decoder[Answer_co], query: Query | None = None) -> Answer_co:
        """Send a GET request and decode its answer."""
        return await self._call("GET", path, answer, query=query)

    async def change(
        self, method: str, path: str, answer: _Decoder[Answer_co], body: Mapping[str, Any] | None = None
    ) -> Answer_co:
        """Send a changing request and decode its answer.

        Raises `ProviderOutcomeUnknown` if the change may have happened, but no answer says so.
        """
        assert method in {"POST", "PUT", "DELETE"}
        return await self._call(method, path, answer, body=body)

    def refuse_if_silent(self) -> None:
        """Raises `ProviderRetry` during the pauses of a provider that does not answer."""
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
        async with self._slot():
            await self._pacer.wait_for_turn(timeout_s=self._timeout_s)
            response = await self._send(request, mutation=mutation)
        retry_after_s = self._pacer.read_rate_limit(status=response.status, headers=response.headers)
        correlation_id = response.headers.get("x-correlation-id")
        if not httpx.codes.is_success(response.status):
            raise error_of(
                status=response.status,
                body=response.content,
                correlation_id=correlation_id,
                mutation=mutation,
                retry_after_s=retry_after_s,
            )
        with contextlib.suppress(*JSON_ERRORS):
            return answer.decode(response.content)
        # Raised outside of the handler, so that the decoder's error, which may quote the body, is not chained.
        raise _unanswered(UNREADABLE_ANSWER, mutation=mutation, correlation_id=correlation_id_in(correlation_id))

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncGenerator[None]:
        """Take one of the `CONCURRENCY_MAX` places. Raises `ProviderRetry` if none becomes free within the time limit of a call."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._slots.acquire()
        except TimeoutError:
            raise ProviderRetry("too_many_calls") from None
        try:
            yield
        finally:
            self._slots.release()

    async def _send(self, request: httpx.Request, *, mutation: bool) -> Answer:
        """Send the request within the time limit. The timeout of httpx limits each read only, and an answer may come byte by byte."""
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
            self._pacer.record_answer()
            failure = _unanswered(UNREADABLE_ANSWER, mutation=mutation)
        else:
            self._pacer.record_answer()
            return answer
        if time.monotonic() - sent_at < self._timeout_s * COSTLY_SHARE:
            self._pacer.record_answer()
        else:
            self._pacer.record_silence(since=sent_at)
        raise failure

    async def _exchange(self, request: httpx.Request) -> Answer:
        response = await self._client.send(request, stream=True)
        try:
            return await read_answer(response, answer_bytes_max=ANSWER_BYTES_MAX)
        finally:
            await response.aclose()


def _unanswered(code: str, *, mutation: bool, correlation_id: str | None = None) -> ProviderError:
    return ProviderOutcomeUnknown(code, correlation_id) if mutation else ProviderRetry(code, correlation_id)
