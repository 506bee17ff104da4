"""API keys of tenants' backends: made, shown and revoked by hand, and dead for good once they are revoked."""

from __future__ import annotations

import asyncio
import json
from uuid import UUID, uuid4

import psycopg
import pytest
from click.testing import CliRunner, Result

from hydracore import auth
from hydracore.auth import Authenticator, AuthError, create_api_key, revoke_api_key
from hydracore.cli import main
from hydracore.db.pool import open_pool
from tests.waiting import until


async def test_a_revoked_key_is_refused_even_if_the_clock_is_set_back(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    now_s = 1_800_000_000.0
    key = await create_api_key(owner_conn, tenant_id="acme", name="backend")
    async with open_pool(database_url, role="hydracore_app", application="test", size=1) as pool:
        authenticator = Authenticator(pool, jwt_secret="s" * 32, clock=lambda: now_s)
        assert (await authenticator.principal_of_key(key)).tenant_id == "acme"

        now_s -= 600
        assert await revoke_api_key(owner_conn, UUID(key.split("_")[1]))

        async def is_refused() -> bool:
            try:
                await authenticator.principal_of_key(key)
            except AuthError:
                return True
            return False

        await until(is_refused, seconds_max=5)


async def test_the_cache_of_api_keys_is_bounded(
    database_url: str, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "API_KEYS_MAX", 2)
    tenants = [f"tenant-{number}" for number in range(4)]
    made = [await create_api_key(owner_conn, tenant_id=tenant, name="backend") for tenant in tenants]
    async with open_pool(database_url, role="hydracore_app", application="test", size=1) as pool:
        authenticator = Authenticator(pool, jwt_secret="s" * 32)

        principals = [await authenticator.principal_of_key(each) for each in made]

    assert [principal.tenant_id for principal in principals] == tenants
    assert [known.tenant_id for known in authenticator._keys.values()] == tenants[2:]


async def test_a_key_id_with_the_secret_of_another_key_is_refused(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    ours, theirs = [await create_api_key(owner_conn, tenant_id=tenant, name="backend") for tenant in ("acme", "rival")]
    mixed = ours[:-43] + theirs[-43:]
    async with open_pool(database_url, role="hydracore_app", application="test", size=1) as pool:
        authenticator = Authenticator(pool, jwt_secret="s" * 32)

        # First the key is looked up, and then it is cached.
        for _ in range(2):
            for acting_as in (None, "ann"):
                with pytest.raises(AuthError):
                    await authenticator.principal_of_key(mixed, acting_as=acting_as)
            assert (await authenticator.principal_of_key(ours)).tenant_id == "acme"


async def test_a_cancelled_request_does_not_cancel_the_key_lookup_that_another_request_awaits(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    key = await create_api_key(owner_conn, tenant_id="acme", name="backend")
    async with open_pool(database_url, role="hydracore_app", application="test", size=1) as pool:
        authenticator = Authenticator(pool, jwt_secret="s" * 32)
        async with pool.connection():
            first, second = [asyncio.create_task(authenticator.principal_of_key(key)) for _ in range(2)]
            await until(lambda: pool.get_stats().get("requests_waiting"))
            first.cancel()
            await asyncio.wait([first])

        assert (await second).tenant_id == "acme"
    assert first.cancelled()


def run(database_url: str, *words: str) -> Result:
    return CliRunner().invoke(main, ["api-key", *words], env={"HYDRACORE_DATABASE_URL": database_url})


def test_keys_are_listed_and_revoked_by_their_ids_and_never_shown_again(database_url: str) -> None:
    keys = [
        run(database_url, "create", "--tenant", tenant, "--name", name).stdout.strip()
        for tenant, name in (("acme", "shop"), ("acme", "back office\n"), ("other", "shop"))
    ]
    ids = [str(UUID(key.split("_")[1])) for key in keys]

    revoked = run(database_url, "revoke", ids[0])
    again = run(database_url, "revoke", ids[0])
    as_json = run(database_url, "list", "--tenant", "acme", "--json")
    as_text = run(database_url, "list", "--tenant", "acme")
    of_other = run(database_url, "list", "--tenant", "other")

    results = [revoked, again, as_json, as_text, of_other]
    assert [result.exit_code for result in results] == [0] * 5
    listed = json.loads(as_json.stdout)
    assert [(each["id"], each["name"]) for each in listed] == [(ids[0], "shop"), (ids[1], "back office\n")]
    assert all(each["created_at"] for each in listed)
    assert [each["revoked_at"] is None for each in listed] == [False, True]
    assert revoked.stdout == again.stdout, "a second revocation reports the first one"
    assert [line.split()[0] for line in as_text.stdout.splitlines()] == ids[:2]
    assert [line.endswith("in use") for line in as_text.stdout.splitlines()] == [False, True]
    assert of_other.stdout.endswith("in use\n")
    assert not any(key[37:] in result.output for key in keys for result in results)


def test_revoking_an_unknown_key_is_a_usage_error(database_url: str) -> None:
    nowhere = run(database_url, "revoke", str(uuid4()))
    no_id = run(database_url, "revoke", "hck_1")

    assert (nowhere.exit_code, no_id.exit_code) == (2, 2)
    assert "There is no API key" in nowhere.stderr


def test_listing_the_keys_of_a_tenant_without_any_gives_an_empty_list_and_names_the_tenant(database_url: str) -> None:
    listed = run(database_url, "list", "--tenant", "nobody", "--json")

    assert (listed.exit_code, json.loads(listed.stdout)) == (0, [])
    assert listed.stderr == "hydracore: tenant 'nobody' has no API keys\n"
