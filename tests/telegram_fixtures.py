"""A simulated Telegram beside a real agent, and helpers for tests of the channel."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests.claw_fixtures import (
    Claw,
    document,
)
from tests.fake_telegram import TOKEN, FakeTelegram, running_telegram
from tests.modelsim_fixtures import ModelSim


@pytest.fixture(name="telegram")
async def telegram_fixture() -> AsyncGenerator[FakeTelegram]:
    async with running_telegram() as fake:
        yield fake


def with_bot(modelsim: ModelSim, telegram: FakeTelegram, token: str | None = TOKEN, **changes: Any) -> dict[str, Any]:
    return document(modelsim, telegram={"bot_token": token, "base_url": telegram.url}, **changes)


async def telegram_connection(claw: Claw) -> str:
    return (await claw.status())["connections"]["telegram"]
