"""A small Telegram beside a real agent, and what tests of the channel ask of both."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests.claw_fixtures import (
    Claw,
    document,
)
from tests.fake_control_plane import FakeControlPlane
from tests.fake_telegram import TOKEN, FakeTelegram, running_telegram
from tests.modelsim_fixtures import ModelSim
from tests.waiting import until


@pytest.fixture(name="telegram")
async def telegram_fixture() -> AsyncGenerator[FakeTelegram]:
    async with running_telegram() as fake:
        yield fake


def with_bot(modelsim: ModelSim, telegram: FakeTelegram, token: str | None = TOKEN, **changes: Any) -> dict[str, Any]:
    return document(modelsim, telegram={"bot_token": token, "base_url": telegram.url}, **changes)


async def use(claw: Claw, control_plane: FakeControlPlane, runtime: dict[str, Any]) -> None:
    """Push it; what its token is, no output may tell."""
    control_plane.runtime = runtime
    control_plane.config_version += 1
    body = {"config_version": control_plane.config_version, "runtime": runtime}
    assert (await claw.http.put("/api/config", json=body)).status_code == 200


async def connection(claw: Claw) -> str:
    return (await claw.status())["connections"]["telegram"]


async def until_connection(claw: Claw, state: str) -> None:
    async def is_so() -> bool:
        return await connection(claw) == state

    await until(is_so)
