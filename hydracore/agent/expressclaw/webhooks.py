"""Webhooks: sends integrations a notice of each answered chat by HTTP, in order, each until it is accepted.

A notice says that there was a chat and what it cost, and nothing of what was said: who may read
conversations is decided elsewhere, and whoever sets up an integration must not get around that.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import sqlite3
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import NoReturn
from uuid import UUID

import httpx
import msgspec
import structlog

from hydracore.agent import VERSION
from hydracore.agent.backoff import Backoff
from hydracore.agent.chat_messages import ChatAnswer, TokenUsage
from hydracore.agent.expressclaw.connections import CONNECTED, READY, error_reason, error_state
from hydracore.agent.expressclaw.features import Webhook, integration_name
from hydracore.agent.expressclaw.notices import Notices
from hydracore.agent.expressclaw.times import utc_datetime
from hydracore.agent.messages import Channel, ReportedError
from hydracore.transport import AnswerTooLarge, new_client, read_answer
from hydracore.waiting import run_until

_log = structlog.get_logger(__name__)

RETRY_BASE_S = 0.5
RETRY_CAP_S = 60.0
CALL_TIMEOUT_S = 10.0

#: The most bytes of an answer that are received. Its content is not used.
ANSWER_BYTES_MAX = 64 * 1024


class ChatDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="chat.done"):
    """The body of a notice. `id` stays the same however often the notice is sent."""

    id: UUID
    at: datetime
    conversation_id: str
    channel: Channel
    model: str
    usage: TokenUsage


class Webhooks:
    """Set the webhooks with `use`, and run `run` as a task."""

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._wanted: tuple[Webhook, ...] | None = None
        self._states: dict[str, str] = {}
        self._changed = asyncio.Event()

    def use(self, webhooks: tuple[Webhook, ...]) -> None:
        if webhooks != self._wanted:
            self._wanted = webhooks
            self._states = {webhook.id: READY for webhook in webhooks}
            self._notices.delete_all_except(webhook.id for webhook in webhooks)
            self._changed.set()

    @property
    def states(self) -> Mapping[str, str]:
        """The state of each webhook: `ready`, `connected` once it has accepted a notice, or `error: ...`."""
        return {integration_name(webhook_id): state for webhook_id, state in self._states.items()}

    @property
    def error(self) -> ReportedError | None:
        for name, state in self.states.items():
            if (reason := error_reason(state)) is not None:
                return ReportedError(code="integration_failed", message=f"{name}: {reason}")
        return None

    async def run(self) -> NoReturn:
        while True:
            self._changed.clear()
            await run_until(self._changed, self._deliver_all(self._wanted or ()))

    async def _deliver_all(self, webhooks: tuple[Webhook, ...]) -> None:
        """Run a task per webhook, so that one that is away does not hold up the others."""
        wakeups = {webhook.id: asyncio.Event() for webhook in webhooks}
        async with asyncio.TaskGroup() as tasks:
            for webhook in webhooks:
                tasks.create_task(self._deliver(webhook, wakeups[webhook.id]))
            while True:
                await self._notices.notices_added.wait()
                self._notices.notices_added.clear()
                for wakeup in wakeups.values():
                    wakeup.set()

    async def _deliver(self, webhook: Webhook, wakeup: asyncio.Event) -> NoReturn:
        client = new_client(tls=webhook.url.startswith("https:"), timeout_s=CALL_TIMEOUT_S)
        backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
        try:
            while True:
                wakeup.clear()
                try:
                    while (notice := await self._notices.oldest(webhook.id)) is not None:
                        problem = await _send(client, webhook, notice.content.encode())
                        if problem is None:
                            await self._notices.delete(notice)
                            self._states[webhook.id] = CONNECTED
                            backoff.reset()
                        else:
                            self._note(webhook, problem)
                            await asyncio.sleep(backoff.next_wait_s())
                except sqlite3.OperationalError as error:
                    # A notice that was accepted and could not be deleted is sent again, with the same `id`.
                    self._note(webhook, f"the agent cannot write to its disk ({error})")
                    await asyncio.sleep(backoff.next_wait_s())
                    continue
                if self._states[webhook.id] != CONNECTED:
                    self._states[webhook.id] = READY
                await wakeup.wait()
        finally:
            await client.aclose()

    def _note(self, webhook: Webhook, problem: str) -> None:
        state = error_state(problem)
        if state != self._states[webhook.id]:
            _log.warning("webhook_failed", webhook=webhook.id, reason=problem)
        self._states[webhook.id] = state


def chat_done_notice(answer: ChatAnswer, *, notice_id: UUID, at_ms: int, channel: Channel) -> str:
    """The notice of an answered chat, as JSON."""
    notice = ChatDone(
        id=notice_id,
        at=utc_datetime(at_ms),
        conversation_id=answer.conversation_id,
        channel=channel,
        model=answer.model,
        usage=answer.usage,
    )
    return msgspec.json.encode(notice).decode()


def signature(secret: str, content: bytes) -> str:
    """The value of `X-HydraCore-Signature`, by which the receiver knows who is calling."""
    return "sha256=" + hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()


async def _send(client: httpx.AsyncClient, webhook: Webhook, content: bytes) -> str | None:
    """Send one notice. Returns why it was not accepted, or None if it was. Never quotes the receiver."""
    headers = {"Content-Type": "application/json", "User-Agent": f"hydracore-agent/{VERSION}"}
    if webhook.secret is not None:
        headers["X-HydraCore-Signature"] = signature(webhook.secret, content)
    try:
        request = client.build_request("POST", webhook.url, content=content, headers=headers)
        status = await _status(client, request)
    except (TimeoutError, httpx.TimeoutException):
        return f"no answer within {CALL_TIMEOUT_S:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        return f"the receiver cannot be reached ({type(error).__name__})"
    except Exception as error:  # noqa: BLE001 - an address that breaks the libraries below must not stop the others
        _log.exception("webhook_broke", webhook=webhook.id)
        return f"the request failed ({type(error).__name__})"
    return None if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES else f"the receiver answered HTTP {status}"


async def _status(client: httpx.AsyncClient, request: httpx.Request) -> int:
    """The status that the receiver answers, even if the rest of its answer cannot be read.

    Raises `TimeoutError` and `httpx.HTTPError`.
    """
    async with asyncio.timeout(CALL_TIMEOUT_S):
        response = await client.send(request, stream=True)
    try:
        # The answer is read to its end, so that the connection can be used for the next notice.
        async with asyncio.timeout(CALL_TIMEOUT_S):
            await read_answer(response, answer_bytes_max=ANSWER_BYTES_MAX)
    except (TimeoutError, httpx.HTTPError, AnswerTooLarge) as error:
        _log.info("webhook_answer_unread", reason=type(error).__name__)
    finally:
        await response.aclose()
    return response.status_code
