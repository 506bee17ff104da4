"""HTTP as the agent and the control plane speak it as clients: no proxy, no redirect, no decompression, all bounded."""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import Final, NamedTuple

import httpx

#: For clients of plain HTTP: it trusts no one, as loading the usual roots would cost a start some 30 ms of CPU for nothing. An
#: https address by mistake then fails instead of being trusted.
TRUST_NOBODY: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

#: A connection that is not made by then will not be; the whole exchange has the caller's own, longer limit.
CONNECT_TIMEOUT_S = 5.0

#: A caller's own `X-Request-Id` is kept when it fits this: it goes into log lines and headers as it is.
REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")

#: Connections that a client has at most, and keeps for the next request.
CONNECTIONS_MAX = 100
CONNECTIONS_KEPT = 20


class AnswerTooLarge(Exception):
    """The peer sent more than the caller is ready to hold, behind this `status`."""

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
    """A client that talks to the addresses it is given and to nobody else, whatever the environment says."""
    return httpx.AsyncClient(
        verify=True if tls else TRUST_NOBODY,
        timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
        limits=httpx.Limits(max_connections=connections_max, max_keepalive_connections=connections_kept),
        follow_redirects=False,
        trust_env=False,
        # A compressed answer could be small on the wire and huge in memory, so none is asked for.
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    )


async def exchange(
    client: httpx.AsyncClient, request: httpx.Request, *, timeout_s: float, answer_max_bytes: int
) -> Answer:
    """Send one request and read its answer.

    Raises `TimeoutError` when it is not whole within `timeout_s`, `AnswerTooLarge`, and `httpx.HTTPError` for the rest.
    """
    try:
        async with asyncio.timeout(timeout_s):
            response = await client.send(request, stream=True)
            try:
                return await read_answer(response, answer_max_bytes=answer_max_bytes)
            finally:
                await response.aclose()
    except httpx.TimeoutException as error:
        raise TimeoutError from error


async def read_answer(response: httpx.Response, *, answer_max_bytes: int) -> Answer:
    """The rest of an answer that has begun. Raises `AnswerTooLarge`, and `httpx.HTTPError` for the rest."""
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > answer_max_bytes:
            raise AnswerTooLarge(response.status_code)
    return Answer(response.status_code, response.headers, bytes(content))
