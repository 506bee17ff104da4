"""The agent on a VPS as the control plane sees it: its status, and the order to take no new chats.

VpsError
├── VpsUnreachable      not connected, or broken off
├── VpsTimeout          no whole answer in time
└── VpsBadAnswer        an answer other than the one agreed on; `status` is its HTTP status
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, Self, TypeVar

import httpx
import msgspec

from hydracore.agent.messages import AgentStatus, Drained
from hydracore.agent.transport import AnswerTooLarge, exchange, new_client

T = TypeVar("T")

#: Where every agent listens, on its VPN address.
AGENT_PORT: Final = 7400

#: A status with a hundred skills has some 10 KB.
ANSWER_MAX_BYTES = 256 * 1024


class VpsError(Exception):
    """Root. The text names the address and the kind of trouble, never what the peer sent and never a token."""


class VpsUnreachable(VpsError):
    pass


class VpsTimeout(VpsError):
    pass


class VpsBadAnswer(VpsError):
    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class VpsClient:
    """One for a whole process: it pools connections to all agents. `timeout_s` bounds each call as a whole.

    `host` must be an address that we allocated ourselves, never one that a caller of the API gave.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        # Plain HTTP: the addresses are inside the VPN, which encrypts and authenticates.
        self._client = new_client(tls=False, timeout_s=timeout_s)

    async def status(self, host: str, port: int, control_token: str) -> AgentStatus:
        """How the agent fares. Raises a `VpsError`."""
        return await self._call("GET", "/api/status", AgentStatus, host=host, port=port, control_token=control_token)

    async def drain(self, host: str, port: int, control_token: str) -> Drained:
        """Have the agent take no new chats; asking again is fine. Raises a `VpsError`."""
        return await self._call("POST", "/api/drain", Drained, host=host, port=port, control_token=control_token)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _call(
        self, method: str, path: str, answer_type: type[T], *, host: str, port: int, control_token: str
    ) -> T:
        where = f"Agent at {host} port {port}"
        url = httpx.URL(scheme="http", host=host, port=port, path=path)
        request = self._client.build_request(method, url, headers={"Authorization": f"Bearer {control_token}"})
        try:
            answer = await exchange(self._client, request, timeout_s=self._timeout_s, answer_max_bytes=ANSWER_MAX_BYTES)
        except TimeoutError as error:
            raise VpsTimeout(f"{where}: no answer within {self._timeout_s:g} s") from error
        except AnswerTooLarge as error:
            raise VpsBadAnswer(f"{where}: more than {ANSWER_MAX_BYTES} bytes", status=HTTPStatus.OK) from error
        except httpx.HTTPError as error:
            raise VpsUnreachable(f"{where}: {type(error).__name__}") from error
        if answer.status != HTTPStatus.OK:
            raise VpsBadAnswer(f"{where}: HTTP status {answer.status}", status=answer.status)
        try:
            return msgspec.json.decode(answer.content, type=answer_type)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise VpsBadAnswer(f"{where}: an unknown body", status=answer.status) from error
