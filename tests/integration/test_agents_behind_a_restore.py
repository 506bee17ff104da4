"""A restored database under agents that kept running: what they have of the lost history, and how they come back from it."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql
from structlog.testing import capture_logs

from events import keys
from hydracore.audit import erasing
from hydracore.cli import main
from tests import lifecycle
from tests.agent_process import AgentProcess, free_address
from tests.api_server import MASTER_KEY, Api, running_api
from tests.booting import boot_agent
from tests.instance_fixtures import execute_commands
from tests.modelsim_fixtures import ModelSim, modelsim_fixture
from tests.services import Services
from tests.waiting import until

__all__ = ["modelsim_fixture"]

BEFORE, LOST = "Words from before the backup.", "Words that only the lost history has."


class One(NamedTuple):
    """An instance of `user`, and its agent."""

    user: str
    instance_id: UUID
    agent: AgentProcess

    async def ask(self, api: Api, method: str, path: str, body: Any = None) -> httpx.Response:
        url, headers = f"/v1/instances/{self.instance_id}{path}", api.token(user=self.user)
        return await api.client.request(method, url, json=body, headers=headers, timeout=30)

    async def say(self, api: Api) -> str:
        """Its answer when it is asked for its instructions."""
        answer = await self.ask(api, "POST", "/chat", {"message": "What are your instructions?"})
        assert answer.status_code == 200, answer.text
        return answer.json()["message"]

    async def configure(self, api: Api, **changes: Any) -> dict[str, Any]:
        return (await self.ask(api, "POST", "/config", changes)).json()

    async def is_up(self, api: Api) -> bool:
        state = await api.parts.store.load(self.instance_id)
        assert self.agent.is_alive, self.agent.output()
        return state is not None and state.agent is not None and state.agent.bootstrap_stage == "healthy"

    async def key(self, api: Api) -> UUID | None:
        """The key that the log knows it to have."""
        state = await api.parts.store.load(self.instance_id)
        assert state is not None
        assert state.agent is not None
        return state.agent.key_id if state.agent.key_acknowledged else None

    async def until_another_key(self, api: Api, had: UUID | None) -> None:
        async def has_another() -> bool:
            return await self.key(api) not in {None, had}

        await until(has_another)

    async def runs(self, api: Api, version: int) -> bool:
        return (await self.ask(api, "GET", "/runtime")).json()["config_version_running"] == version

    async def batches(self, api: Api) -> int:
        """How many usage reports of it the log has."""
        statement = "SELECT count(*) FROM event WHERE stream_id = %s AND type = 'usage_recorded'"
        async with api.parts.pool.connection() as connection:
            row = await (await connection.execute(statement, (self.instance_id,))).fetchone()
        assert row is not None
        return row[0]

    def disk(self) -> str:
        """The configuration and the secrets that it has stored."""
        return "".join((self.agent.state / name).read_text() for name in ("config.json", "secrets.json"))


class Place(NamedTuple):
    """Where an API is served, from one database after the other, so that agents find it again."""

    redis_url: str
    modelsim: ModelSim
    port: int
    erasures: Path

    @asynccontextmanager
    async def api(self, database_url: str) -> AsyncGenerator[Api]:
        async with running_api(
            database_url,
            self.redis_url,
            port=self.port,
            model_base_url=self.modelsim.base_url,
            model_api_key="sk-test",
            heartbeat_interval_s=0.2,
            erasure_file=self.erasures,
        ) as api:
            yield api

    async def run(self, database_url: str, *words: str) -> Result:
        env = {
            "HYDRACORE_DATABASE_URL": database_url,
            "HYDRACORE_MASTER_KEY": urlsafe_b64encode(MASTER_KEY).decode(),
            "HYDRACORE_ERASURE_FILE": str(self.erasures),
        }
        return await asyncio.to_thread(CliRunner().invoke, main, words, env=env)


@pytest.fixture
def place(redis_url: str, modelsim: ModelSim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(keys, "CACHE_S", 0.0)
    monkeypatch.setattr(erasing, "APPEND_S", 0.0)
    return Place(redis_url, modelsim, free_address()[1], tmp_path / "erasures.jsonl")


class Backup(NamedTuple):
    services: Services
    of: str
    url: str

    def take(self) -> None:
        """Take it, while no session is connected."""
        names = {name: sql.Identifier(url.rpartition("/")[2]) for name, url in (("name", self.url), ("of", self.of))}
        with psycopg.connect(self.services.postgres_url.format("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {name} TEMPLATE {of}").format(**names))


@pytest.fixture
def backup(services: Services, database_url: str) -> Generator[Backup]:
    name = database_url.rpartition("/")[2] + "_backup"
    yield Backup(services, database_url, services.postgres_url.format(name))
    services.drop_database(name)


@asynccontextmanager
async def living(place: Place, database_url: str, root: Path, *users: str) -> AsyncGenerator[list[One]]:
    """An agent of each of `users`, all with version 2 of their configurations."""
    ones: list[One] = []
    try:
        async with place.api(database_url) as api:
            for user in users:
                (root / user).mkdir()
                ones.append(One(user, *await boot_agent(api, root / user, user=user)))
            for one in ones:
                await until(lambda one=one: one.is_up(api))
                await execute_commands(api, one.instance_id, lifecycle.mark_ready())
                assert (await one.configure(api, system_prompt=BEFORE))["applied"]
        yield ones
    finally:
        for one in ones:
            one.agent.stop_for_good()


async def make_history_to_lose(api: Api, lower: One, equal: One, rotated: One, erased: One) -> None:
    """Configurations of other words, some of a higher version than others, another key, and usage."""
    for one in (lower, equal, rotated, erased):
        assert (await one.configure(api, system_prompt=LOST))["applied"]
    for one in (lower, erased):
        await one.configure(api, agent_name="Eva")
    had = await rotated.key(api)
    root = api.token(user="root", role="admin")
    await api.client.post(f"/v1/instances/admin/{rotated.instance_id}/rotate-key", headers=root)
    await rotated.until_another_key(api, had)
    assert LOST in await rotated.say(api)
    await until(lambda: rotated.batches(api))


async def test_reissuing_all_keys_brings_every_agent_back_from_a_lost_history(
    place: Place, database_url: str, backup: Backup, tmp_path: Path
) -> None:
    async with living(place, database_url, tmp_path, "lower", "equal", "rotated", "erased") as ones:
        lower, equal, rotated, erased = ones
        await asyncio.to_thread(backup.take)
        async with place.api(database_url) as api:
            await make_history_to_lose(api, lower, equal, rotated, erased)

        # Before any agent hears of it there are as many changes as were lost; the erasure is one, too.
        async with running_api(backup.url, place.redis_url) as api:
            for one in (equal, erased):
                await execute_commands(api, one.instance_id, lifecycle.configure(agent_name="Bea"))
        erasure = await place.run(backup.url, "audit", "erase-customer", "erased", "--also-live", "--yes")

        async with place.api(backup.url) as api:
            await until(lambda: lower.agent.output().count('"wanted":2') >= 1)
            before = [await one.key(api) for one in ones]
            kept = [
                await equal.runs(api, 3),
                await erased.runs(api, 4),
                LOST in await equal.say(api),
                LOST in erased.disk(),
            ]
            locked_out = await rotated.ask(api, "POST", "/chat", {"message": "Hello"})

            reissued = await place.run(backup.url, "master-key", "reissue", "--all")

            for one, had in zip(ones, before, strict=True):
                await one.until_another_key(api, had)
            await until(lambda: lower.runs(api, 2))
            await until(lambda: rotated.batches(api))
            said = [await one.say(api) for one in ones]
            shown = [(await one.ask(api, "GET", "/config")).json() for one in ones]

    assert erasure.exit_code == 0, erasure.output
    assert (kept, locked_out.status_code) == ([True] * 4, 502)
    assert reissued.exit_code == 0, reissued.output
    # The API's log may stand there, too.
    assert f"revoked: {len(ones)} agent keys" in reissued.output
    assert [BEFORE in each for each in said] == [True, True, True, False]
    assert not any(LOST in each for each in said)
    assert [each["config_version"] for each in shown] == [2, 3, 2, 4]
    assert [each["running"]["config_version"] for each in shown] == [2, 3, 2, 4]
    assert [each["running"]["agent_name"] for each in shown] == [None, "Bea", None, "Bea"]
    assert not any(LOST in one.disk() for one in ones)
    assert BEFORE not in erased.disk()


async def test_an_agent_locked_out_by_a_restore_is_logged_once(
    place: Place, database_url: str, backup: Backup, tmp_path: Path
) -> None:
    async with living(place, database_url, tmp_path, "ann") as (ann,):
        await asyncio.to_thread(backup.take)
        async with place.api(database_url) as api:
            had = await ann.key(api)
            await execute_commands(api, ann.instance_id, lifecycle.rotate_key())
            await ann.until_another_key(api, had)
            # If it missed the answer, it would go on with the key before, which is that of the backup.
            await until(lambda: "The agent key was replaced" in ann.agent.output())

        with capture_logs() as lines:
            async with place.api(backup.url):
                await ann.agent.until_logged("control_plane_refuses", times=3)

    told = [line for line in lines if line["event"] == "agent_locked_out"]
    assert [(line["log_level"], line["instance_id"]) for line in told] == [("warning", str(ann.instance_id))]
