"""`master-key reissue`: agents' keys that were made with another master key are revoked, and fetched anew."""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64encode
from typing import Any
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner, Result

from hydracore import reissuing, tokens
from hydracore.cli import main
from tests import lifecycle
from tests.api_server import MASTER_KEY, Api, running_api
from tests.instance_fixtures import events_of, execute_commands, running_instance

NEW = bytes(range(1, 33))
COUNTS = {"present": 0, "former": 0, "unknown": 0, "awaited": 0, "passing": 0, "unreadable": 0}


async def revoke(api: Api, *, former: bytes | None) -> tuple[int, Any]:
    result = await run(api, "reissue", former=former)
    return result.exit_code, json.loads(result.stdout)


async def run(api: Api, *words: str, former: bytes | None) -> Result:
    env = {
        "HYDRACORE_DATABASE_URL": api.parts.settings.database_url,
        "HYDRACORE_MASTER_KEY": urlsafe_b64encode(NEW).decode(),
        "HYDRACORE_MASTER_KEYS_FORMER": "" if former is None else urlsafe_b64encode(former).decode(),
    }
    return await asyncio.to_thread(CliRunner().invoke, main, ["master-key", *words, "--json"], env=env)


def key_hash(master_key: bytes, instance_id: UUID, key_id: UUID) -> str:
    return tokens.hash_token(tokens.agent_key(master_key, instance_id, key_id)).hex()


@pytest.mark.parametrize("former", [MASTER_KEY, None], ids=["former", "dropped"])
async def test_agent_keys_made_with_another_master_key_are_revoked_once_and_no_others(
    database_url: str,
    redis_url: str,
    owner_conn: psycopg.AsyncConnection,
    monkeypatch: pytest.MonkeyPatch,
    former: bytes | None,
) -> None:
    monkeypatch.setattr(reissuing, "EVENTS_PAGE_SIZE", 2)
    async with (
        running_api(database_url, redis_url) as api,
        running_instance(api, reachable=False) as old,
        running_instance(api, reachable=False) as new,
        running_instance(api, reachable=False) as broken,
        running_instance(api, reachable=False) as forged,
    ):
        # Between and after the events that matter are ordinary ones.
        for instance in (old, new, broken):
            await execute_commands(
                api, instance.instance_id, lifecycle.health("late"), lifecycle.configure(agent_name="Eva")
            )
        by_new = lifecycle.issue(lifecycle.SECOND_KEY, key_hash=key_hash(NEW, new.instance_id, lifecycle.SECOND_KEY))
        await execute_commands(
            api, new.instance_id, lifecycle.rotate_key(), by_new, lifecycle.acknowledge(lifecycle.SECOND_KEY)
        )
        await owner_conn.execute("DELETE FROM event WHERE stream_id = %s AND version = 3", (broken.instance_id,))
        await owner_conn.execute(
            "UPDATE event SET payload = regexp_replace(payload::text, '[0-9]{13}', repeat('9', 20))::json"
            " WHERE stream_id = %s AND version = 1",
            (forged.instance_id,),
        )

        first, again = await revoke(api, former=former), await revoke(api, former=former)

        left = COUNTS | {"present": 1, "awaited": 1, "unreadable": 2}
        assert first == (1, {"revoked": 1, "missed": 0, "agents": left})
        assert again == (1, {"revoked": 0, "missed": 0, "agents": left})
        for instance_id in (old.instance_id, new.instance_id):
            assert len(await events_of(owner_conn, instance_id, "agent_key_revoked")) == 1


async def test_reissue_all_revokes_the_key_of_each_agent_in_use_once(
    database_url: str, redis_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with (
        running_api(database_url, redis_url) as api,
        running_instance(api, reachable=False) as old,
        running_instance(api, reachable=False) as new,
        running_instance(api, reachable=False) as leaving,
    ):
        by_new = lifecycle.issue(lifecycle.SECOND_KEY, key_hash=key_hash(NEW, new.instance_id, lifecycle.SECOND_KEY))
        await execute_commands(
            api, new.instance_id, lifecycle.rotate_key(), by_new, lifecycle.acknowledge(lifecycle.SECOND_KEY)
        )
        await execute_commands(api, leaving.instance_id, lifecycle.delete())

        first, again = [await run(api, "reissue", "--all", former=MASTER_KEY) for _ in range(2)]

        left = COUNTS | {"present": 1, "awaited": 1, "passing": 1}
        assert (first.exit_code, again.exit_code) == (0, 0)
        assert json.loads(first.stdout) == {"revoked": 2, "missed": 0, "agents": left}
        assert json.loads(again.stdout) == {"revoked": 0, "missed": 0, "agents": left}
        assert len(await events_of(owner_conn, old.instance_id, "agent_key_revoked")) == 1
        assert len(await events_of(owner_conn, new.instance_id, "agent_key_revoked")) == 2


@pytest.mark.parametrize("command", ["rewrap", "reissue"])
async def test_rewrap_and_reissue_refuse_the_master_key_of_another_installation(
    database_url: str, redis_url: str, owner_conn: psycopg.AsyncConnection, command: str
) -> None:
    async with running_api(database_url, redis_url) as api, running_instance(api, reachable=False) as instance:
        await api.parts.keyring.seal("text", tenant_id="acme", customer_id="ann", field="a_field")

        result = await run(api, command, former=None)

        assert (result.exit_code, result.stdout) == (2, "")
        assert "HYDRACORE_MASTER_KEY does not fit this database" in result.stderr
        assert not await events_of(owner_conn, instance.instance_id, "agent_key_revoked")


async def test_an_unreadable_customer_key_does_not_make_a_former_master_key_needed(
    database_url: str, redis_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with running_api(database_url, redis_url, master_key=NEW) as api:
        await api.parts.keyring.seal("text", tenant_id="acme", customer_id="ann", field="a_field")
        await owner_conn.execute(r"UPDATE customer_key SET wrapped_key = '\x00'")

        result = await run(api, "status", former=MASTER_KEY)

    told = json.loads(result.stdout)
    assert (result.exit_code, told["is_former_needed"], told["customer_keys"]["unreadable"]) == (1, False, 1)


async def test_an_unreadable_history_is_reported_by_status_and_reissue(
    database_url: str, redis_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with (
        running_api(database_url, redis_url, master_key=NEW) as api,
        running_instance(api, reachable=False) as broken,
    ):
        await owner_conn.execute("DELETE FROM event WHERE stream_id = %s AND version = 3", (broken.instance_id,))

        status, reissue = [await run(api, command, former=MASTER_KEY) for command in ("status", "reissue")]

    for result in (status, reissue):
        assert (result.exit_code, json.loads(result.stdout)["agents"]) == (1, COUNTS | {"unreadable": 1})
    assert json.loads(status.stdout)["is_former_needed"] is False
