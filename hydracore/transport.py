"""HTTP clients of the agent and the control plane: no proxies, no redirects, no decompression, and all is bounded."""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import Final, NamedTuple

import httpx

#: The TLS context of clients for plain HTTP. It trusts no certificate: loading the usual roots would
#: add some 30 ms of CPU to a start for nothing, and an https URL that gets there by mistake fails.
EMPTY_TRUST_STORE: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

#: The longest that connecting may take. The whole exchange has the caller's own, longer limit.
CONNECT_TIMEOUT_S = 5.0

#: A caller's own `X-Request-Id` is used if it matches this, as it goes into log lines and headers unchanged.
REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")

#: The most connections of a client, and the most idle ones that it keeps for further requests.
CONNECTIONS_MAX = 100
CONNECTIONS_KEPT = 20


class AnswerTooLarge(Exception):
    """The body of the answer is larger than the caller allows. `status`: the answer's HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Answer(NamedTuple):
    status: int
    headers: httpx.Headers
    content: bytes


def new_client(
    *,
    tls: bool,
    timeout_s: float,
    connections_max: int | None = CONNECTIONS_MAX,
    connections_kept: int = CONNECTIONS_KEPT,
) -> httpx.AsyncClient:
    """A client that connects to the hosts of its requests only: it ignores redirects and the environment's proxies."""
    return httpx.AsyncClient(
        verify=True if tls else EMPTY_TRUST_STORE,
        timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
        limits=httpx.Limits(max_connections=connections_max, max_keepalive_connections=connections_kept),
        follow_redirects=False,
        trust_env=False,
        # A compressed answer could be small on the wire and huge in memory, so none is asked for.
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    )


async def exchange(
    client: httpx.AsyncClient, request: httpx.Request, *, timeout_s: float, answer_bytes_max: int
) -> Answer:
    """Send one request and read its answer.

    Raises `TimeoutError` if the answer is not complete within `timeout_s`, `AnswerTooLarge`, and
    `httpx.HTTPError` otherwise.
    """
    try:
        async with asyncio.timeout(timeout_s):
            response = await client.send(request, stream=True)
            try:
                return await read_answer(response, answer_bytes_max=answer_bytes_max)
            finally:
                await response.aclose()
    except httpx.TimeoutException as error:
        raise TimeoutError from error


async def read_answer(response: httpx.Response, *, answer_bytes_max: int) -> Answer:
    """Read the body of an answer whose head has come. Raises `AnswerTooLarge` and `httpx.HTTPError`."""
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > answer_bytes_max:
            raise AnswerTooLarge(response.status_code)
    return Answer(response.status_code, response.headers, bytes(content))
