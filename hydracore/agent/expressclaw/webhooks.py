"""Webhooks: integrations that are told of each answered chat by an HTTP request, in order, until they take it.

They are told that there was a chat and what it cost, and nothing of what was said: who may read conversations is decided
elsewhere, and whoever sets up an integration must not get around that.
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
from hydracore.agent.expressclaw.connections import CONNECTED, READY, failing, reason_of
from hydracore.agent.expressclaw.notices import Notices
from hydracore.agent.expressclaw.times import moment
from hydracore.agent.expressclaw.wishes import Webhook, integration_name
from hydracore.agent.messages import Channel, ReportedError
from hydracore.transport import AnswerTooLarge, new_client, read_answer
from hydracore.waiting import work_until

_log = structlog.get_logger(__name__)

RETRY_BASE_S = 0.5
RETRY_CAP_S = 60.0
CALL_TIMEOUT_S = 10.0

#: Nobody reads what they answer.
ANSWER_MAX_BYTES = 64 * 1024


class ChatDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="chat.done"):
    """What a webhook is sent. `id` stays the same however often it is sent."""

    id: UUID
    at: datetime
    conversation_id: str
    channel: Channel
    model: str
    usage: TokenUsage


class Webhooks:
    """Say whom to tell with `use`, then `run` it beside the rest."""

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._wanted: tuple[Webhook, ...] | None = None
        self._states: dict[str, str] = {}
        self._changed = asyncio.Event()

    def use(self, webhooks: tuple[Webhook, ...]) -> None:
        if webhooks != self._wanted:
            self._wanted = webhooks
            self._states = {webhook.id: READY for webhook in webhooks}
            self._notices.keep_only(webhook.id for webhook in webhooks)
            self._changed.set()

    @property
    def states(self) -> Mapping[str, str]:
        """How each fares: `ready`, `connected` once it took something, or `error: ...`."""
        return {integration_name(webhook_id): state for webhook_id, state in self._states.items()}

    @property
    def error(self) -> ReportedError | None:
        for name, state in self.states.items():
            if (reason := reason_of(state)) is not None:
                return ReportedError(code="integration_failed", message=f"{name}: {reason}")
        return None

    async def run(self) -> NoReturn:
        while True:
            self._changed.clear()
            await work_until(self._changed, self._tell_all(self._wanted or ()))

    async def _tell_all(self, webhooks: tuple[Webhook, ...]) -> None:
        """Each on its own, so that one that is away keeps nobody waiting."""
        news = {webhook.id: asyncio.Event() for webhook in webhooks}
        async with asyncio.TaskGroup() as tasks:
            for webhook in webhooks:
                tasks.create_task(self._tell(webhook, news[webhook.id]))
            while True:
                await self._notices.news.wait()
                self._notices.news.clear()
                for each in news.values():
                    each.set()

    async def _tell(self, webhook: Webhook, news: asyncio.Event) -> NoReturn:
        client = new_client(tls=webhook.url.startswith("https:"), timeout_s=CALL_TIMEOUT_S)
        backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
        try:
            while True:
                news.clear()
                try:
                    while (notice := await self._notices.next(webhook.id)) is not None:
                        trouble = await _send(client, webhook, notice.content.encode())
                        if trouble is None:
                            await self._notices.done(notice)
                            self._states[webhook.id] = CONNECTED
                            backoff.reset()
                        else:
                            self._note(webhook, trouble)
                            await asyncio.sleep(backoff.next_s())
                except sqlite3.OperationalError as error:
                    # What was taken and is still on disk is told again, with the same `id`.
                    self._note(webhook, f"the agent's disk refuses ({error})")
                    await asyncio.sleep(backoff.next_s())
                    continue
                if self._states[webhook.id] != CONNECTED:
                    self._states[webhook.id] = READY
                await news.wait()
        finally:
            await client.aclose()

    def _note(self, webhook: Webhook, trouble: str) -> None:
        state = failing(trouble)
        if state != self._states[webhook.id]:
            _log.warning("webhook_failed", webhook=webhook.id, reason=trouble)
        self._states[webhook.id] = state


def chat_done(answer: ChatAnswer, *, notice_id: UUID, at_ms: int, channel: Channel) -> str:
    """What is told of an answered chat, as JSON."""
    told = ChatDone(
        id=notice_id,
        at=moment(at_ms),
        conversation_id=answer.conversation_id,
        channel=channel,
        model=answer.model,
        usage=answer.usage,
    )
    return msgspec.json.encode(told).decode()


def signature(secret: str, content: bytes) -> str:
    """What `X-HydraCore-Signature` says, so that the receiver knows who is calling."""
    return "sha256=" + hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()


async def _send(client: httpx.AsyncClient, webhook: Webhook, content: bytes) -> str | None:
    """Why it was not taken, or None. Nothing of what the receiver says is passed on."""
    headers = {"Content-Type": "application/json", "User-Agent": f"hydracore-agent/{VERSION}"}
    if webhook.secret is not None:
        headers["X-HydraCore-Signature"] = signature(webhook.secret, content)
    try:
        request = client.build_request("POST", webhook.url, content=content, headers=headers)
        status = await _status(client, request)
    except (TimeoutError, httpx.TimeoutException):
        return f"no answer within {CALL_TIMEOUT_S:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        return f"it cannot be reached ({type(error).__name__})"
    except Exception as error:  # noqa: BLE001 - what an address does to the libraries below is its own trouble: all else goes on
        _log.exception("webhook_broke", webhook=webhook.id)
        return f"it cannot be told ({type(error).__name__})"
    return None if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES else f"it answers HTTP {status}"


async def _status(client: httpx.AsyncClient, request: httpx.Request) -> int:
    """What the receiver answers: it has decided by then, whatever becomes of the rest. Raises `TimeoutError` and `httpx.HTTPError`."""
    async with asyncio.timeout(CALL_TIMEOUT_S):
        response = await client.send(request, stream=True)
    try:
        # To its end, so that the connection can be used for the next one.
        async with asyncio.timeout(CALL_TIMEOUT_S):
            await read_answer(response, answer_max_bytes=ANSWER_MAX_BYTES)
    except (TimeoutError, httpx.HTTPError, AnswerTooLarge) as error:
        _log.info("webhook_answer_unread", reason=type(error).__name__)
    finally:
        await response.aclose()
    return response.status_code
