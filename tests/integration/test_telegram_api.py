"""Errors of Telegram's bot API: what may be sent again, and when."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from hydracore.agent.expressclaw.telegram_api import RETRY_AFTER_S_MAX, TelegramApi, TelegramBusy, TelegramUnavailable
from tests.agent_process import free_address
from tests.fake_telegram import TOKEN
from tests.raw_endpoint import raw_endpoint


@asynccontextmanager
async def api_at(base_url: str) -> AsyncGenerator[TelegramApi]:
    api = TelegramApi(token=TOKEN, base_url=base_url)
    yield api
    await api.aclose()


async def error_of_sending(base_url: str) -> TelegramUnavailable:
    """The error of sending a message there."""
    async with api_at(base_url) as api:
        with pytest.raises(TelegramUnavailable) as caught:
            await api.send(5, "Hello")
    return caught.value


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_after_a_gateway_error_a_message_counts_as_possibly_sent(status: int) -> None:
    async with raw_endpoint(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n".encode()) as endpoint:
        error = await error_of_sending(endpoint.base_url)

    assert not error.is_unsent


async def test_a_message_that_got_no_connection_counts_as_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydracore.transport.CONNECT_TIMEOUT_S", 0.2)
    host, port = free_address()
    refused = await error_of_sending(f"http://{host}:{port}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # The system accepts the connection, but no TLS handshake follows.
        unanswered = await error_of_sending(f"https://127.0.0.1:{silent.getsockname()[1]}")

    nowhere = await error_of_sending("http://[")

    assert refused.is_unsent
    assert unanswered.is_unsent
    assert nowhere.is_unsent


async def test_a_message_without_an_answer_counts_as_possibly_sent() -> None:
    async with raw_endpoint() as endpoint:
        error = await error_of_sending(endpoint.base_url)

    assert not error.is_unsent


@pytest.mark.parametrize(
    ("asked", "heeded_s"), [("3", 3.0), ("86400", RETRY_AFTER_S_MAX), ("9" * 400, RETRY_AFTER_S_MAX), ("-7", 0.0)]
)
async def test_the_wait_that_telegram_asks_for_is_respected_within_limits(asked: str, heeded_s: float) -> None:
    content = b'{"ok": false, "parameters": {"retry_after": %s}}' % asked.encode()
    head = b"HTTP/1.1 429 x\r\nContent-Length: %d\r\n\r\n" % len(content)
    async with raw_endpoint(head, content) as endpoint, api_at(endpoint.base_url) as api:
        with pytest.raises(TelegramBusy) as caught:
            await api.send(5, "Hello")

    assert caught.value.retry_after_s == heeded_s
