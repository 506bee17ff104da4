"""The scripted model server for tests, with handles to its strings: a fixture, to be imported by name."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from hydracore.modelsim.main import serve
from hydracore.transport import EMPTY_TRUST_STORE
from tests.waiting import PATIENCE_S, until


class ModelSim:
    """A running one, and what a test may ask of it."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url = url
        self.http = http

    @property
    def base_url(self) -> str:
        """What an OpenAI client is given."""
        return f"{self.url}/v1"

    async def fault(self, kind: str, **details: Any) -> None:
        answer = await self.http.post("/_sim/faults", json={"kind": kind, **details})
        assert answer.status_code == 200, answer.text

    async def release(self) -> None:
        await self.http.post("/_sim/release")

    async def requests(self) -> list[dict[str, Any]]:
        return (await self.http.get("/_sim/requests")).json()["requests"]

    async def until_requests(self, count: int, **fields: Any) -> list[dict[str, Any]]:
        """Wait until `count` requests have these fields."""
        found: list[dict[str, Any]] = []

        async def are_there() -> bool:
            found[:] = [one for one in await self.requests() if fields.items() <= one.items()]
            return len(found) >= count

        await until(are_there)
        return found


@asynccontextmanager
async def running_modelsim(home: Path) -> AsyncGenerator[ModelSim]:
    async with (
        serve(host="127.0.0.1", port=0, home=home) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE_S, verify=EMPTY_TRUST_STORE) as http,
    ):
        yield ModelSim(url, http)


@pytest.fixture(name="modelsim")
async def modelsim_fixture(tmp_path: Path) -> AsyncGenerator[ModelSim]:
    async with running_modelsim(tmp_path) as sim:
        yield sim
