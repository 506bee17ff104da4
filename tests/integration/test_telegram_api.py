"""Telegram's bot API when something goes wrong: what may be tried again, and when."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from hydracore.agent.expressclaw.telegram_api import RETRY_AFTER_MAX_S, TelegramApi, TelegramBusy
from tests.fake_telegram import TOKEN
from tests.raw_endpoint import raw_endpoint


@asynccontextmanager
async def api_at(base_url: str) -> AsyncGenerator[TelegramApi]:
    api = TelegramApi(token=TOKEN, base_url=base_url)
    yield api
    await api.aclose()


@pytest.mark.parametrize(
    ("asked", "heeded_s"), [("3", 3.0), ("86400", RETRY_AFTER_MAX_S), ("9" * 400, RETRY_AFTER_MAX_S), ("-7", 0.0)]
)
async def test_the_wait_that_telegram_asks_for_is_heeded_within_bounds(asked: str, heeded_s: float) -> None:
    content = b'{"ok": false, "parameters": {"retry_after": %s}}' % asked.encode()
    head = b"HTTP/1.1 429 x\r\nContent-Length: %d\r\n\r\n" % len(content)
    async with raw_endpoint(head, content) as endpoint, api_at(endpoint.base_url) as api:
        with pytest.raises(TelegramBusy) as caught:
            await api.send(5, "Hello")

    assert caught.value.retry_after_s == heeded_s
