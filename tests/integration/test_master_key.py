"""The master key is replaced while everything runs, in the steps of docs/operations.md, and the old one is dropped."""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import pytest
from click.testing import CliRunner, Result

from hydracore.cli import main
from tests.modelsim_fixtures import running_modelsim
from tests.stack import FAST_HEARTBEATS, MASTER_KEY, Stack

OLD, NEW = (urlsafe_b64encode(key).decode() for key in (MASTER_KEY, b"the-master-key-that-comes-after-"))
BOTH = {"master_key": NEW, "master_keys_former": OLD}
PROMPT = "Speak like a pirate"


class Rotated(NamedTuple):
    """A stack of the test's own, and an instance of ann's in it that was made with the master key that will be replaced."""

    stack: Stack
    instance_id: UUID
    key: str

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return await self.stack.ask(method, f"/v1/instances/{self.instance_id}{path}", body, headers=headers)

    async def restart(self, **settings: str) -> None:
        """Restart the processes that have the master key, with other settings."""
        for each in (self.stack.api, self.stack.worker):
            each.kill()
            each.start(**settings)
        await self.stack.start(boot="inline")

    async def run(self, *words: str, **settings: str) -> Result:
        env = self.stack.environ(**settings)
        return await asyncio.to_thread(CliRunner().invoke, main, ["master-key", *words], env=env)

    async def counted(self) -> dict[str, Any]:
        return json.loads((await self.run("status", "--json", **BOTH)).stdout)

    async def assert_everything_works(self) -> None:
        """A chat, for which the agent is asked; a sealed field; and a heartbeat, which the agent sends by itself."""
        chat = await self.ask("POST", "/chat", {"message": "What are your instructions?"})
        config = await self.ask("GET", "/config")
        beat = (await self.ask("GET", "/runtime")).json()["last_heartbeat"]

        assert chat.status_code == 200, chat.text
        assert PROMPT in chat.json()["message"]
        assert (config.json()["system_prompt"], config.json()["running"]["system_prompt"]) == (PROMPT, PROMPT)

        async def is_heard() -> bool:
            return (await self.ask("GET", "/runtime")).json()["last_heartbeat"] > beat

        await self.stack.until(is_heard)


@pytest.fixture
async def rotated(tmp_path: Path, database_url: str, redis_url: str) -> AsyncGenerator[Rotated]:
    async with running_modelsim(tmp_path) as models:
        stack = Stack(
            tmp_path,
            database_url=database_url,
            redis_url=redis_url,
            model_base_url=models.base_url,
            model_api_key="sk-test",
            **FAST_HEARTBEATS,
        )
        try:
            await stack.start(boot="inline")
            key, _ = stack.new_key()
            one = Rotated(stack, await stack.running(key=key), key)
            assert (await one.ask("POST", "/config", {"system_prompt": PROMPT})).json()["applied"]
            yield one
        finally:
            stack.close()


@pytest.mark.long
async def test_everything_works_while_the_master_key_is_replaced_and_after_the_old_one_is_dropped(
    rotated: Rotated,
) -> None:
    stack = rotated.stack
    await rotated.assert_everything_works()

    await rotated.restart(**BOTH)
    await rotated.assert_everything_works()
    assert await stack.create(rotated.key) == rotated.instance_id
    other = await stack.ask(
        "POST", "/v1/instances", {"region_id": "local", "tier_id": "standard", "idempotency_key": rotated.key}
    )
    young = await stack.running()
    before = await rotated.counted()
    refused = stack.program("api")
    refused.start(master_key=NEW)
    await stack.until(lambda: not refused.is_alive)

    rewrapped, reissued = await rotated.run("rewrap", **BOTH), await rotated.run("reissue", "--json", **BOTH)

    async def is_former_key_unused() -> bool:
        return not (await rotated.counted())["is_former_needed"]

    await stack.until(is_former_key_unused)
    after = await rotated.counted()
    await rotated.assert_everything_works()
    await rotated.restart(master_key=NEW)
    await rotated.assert_everything_works()
    status = await rotated.run("status", master_key=NEW)
    for instance_id in (rotated.instance_id, young):
        await stack.delete(instance_id)
        await stack.until_status(instance_id, "deleted")

    assert other.status_code == 409
    assert before["customer_keys"] == {"present": 0, "former": 1, "unreadable": 0}
    assert (before["agents"]["present"], before["agents"]["former"], before["is_former_needed"]) == (1, 1, True)
    (line,) = refused.output().splitlines()[-1:]
    assert line.startswith("hydracore: HYDRACORE_MASTER_KEY does not fit this database")
    assert (rewrapped.exit_code, reissued.exit_code, json.loads(reissued.stdout)["revoked"]) == (0, 0, 1)
    assert (after["customer_keys"]["present"], after["agents"]["present"]) == (1, 2)
    assert status.exit_code == 0
    assert status.output.splitlines()[-1] == "nothing here depends on a former master key"
