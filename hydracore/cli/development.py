"""A running stack with users: two tenants, their users' tokens, an API key. All of these are in `dev.json`.

The file `env` beside it holds the settings of the parts, for commands that are to use the same stack.
"""

import shlex
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

import httpx
import msgspec
from psycopg import AsyncConnection

from hydracore.auth import Role, create_api_key, issue_token
from hydracore.embedded.files import write_json
from hydracore.embedded.home import Home
from hydracore.embedded.stack import Stack
from hydracore.files import write_atomic

#: Development tokens are valid for a year from each start.
TOKEN_TTL_S: Final = 365 * 86_400
KEY_CHECK_S_MAX: Final = 5.0
#: The kinds of parts that `DevFile.pids` lists.
PARTS: Final = ("api", "relay", "worker", "cloudsim", "modelsim")


class User(msgspec.Struct, frozen=True):
    user_id: str
    token: str


class OtherTenant(msgspec.Struct, frozen=True):
    tenant_id: str
    admin: User


class DevFile(msgspec.Struct, kw_only=True):
    """The contents of `dev.json`. `pids` is updated when a part restarts."""

    url: str
    tenant_id: str
    admin: User
    customer: User
    other_customer: User
    other_tenant: OtherTenant
    api_key: str
    database_url: str
    redis_url: str
    cloudsim_url: str
    cloudsim_token: str
    #: The scripted models; null where HYDRACORE_MODEL_BASE_URL names real ones.
    modelsim_url: str | None
    pids: dict[str, list[int]]


@asynccontextmanager
async def development(
    home: Home,
    *,
    port: int | None,
    workers: int,
    environ: Mapping[str, str],
    on_failure: Callable[[str], None] | None = None,
) -> AsyncGenerator[tuple[Stack, DevFile]]:
    """Start everything in `home`. While it is ready, `dev.json` and `env` exist.

    Raises as `Stack.running` and `Home.lock` do.

    `port`: that of the API; None has the home draw one. `on_failure`: called with one line when a part has ended by itself.
    """
    written: list[tuple[Stack, DevFile]] = []

    def write() -> None:
        for stack, file in written:
            known = stack.supervisor.pids()
            file.pids = {kind: known.get(kind, []) for kind in PARTS}
            write_json(home.dev_file, file, durable=False)

    with home.lock():
        home.dev_file.unlink(missing_ok=True)
        async with Stack.running(
            home, port=port, workers=workers, environ=environ, on_change=write, on_failure=on_failure
        ) as stack:
            file = await _issue_tokens(stack)
            settings = "".join(f"{name}={shlex.quote(value)}\n" for name, value in stack.managed_settings().items())
            write_atomic(home.env_file, settings.encode(), durable=False)
            written.append((stack, file))
            write()
            try:
                yield stack, file
            finally:
                written.clear()
                home.dev_file.unlink(missing_ok=True)
                home.env_file.unlink(missing_ok=True)


async def _issue_tokens(stack: Stack) -> DevFile:
    """Issue tokens for the users of this home. Their ids never change, and the tokens of earlier starts stay valid."""
    known = stack.secrets
    expires_at = time.time() + TOKEN_TTL_S

    def user(user_id: str, role: Role, *, tenant_id: str = known.tenant_id) -> User:
        token = issue_token(
            stack.settings.jwt_secret,
            tenant_id=tenant_id,
            user_id=user_id,
            role=role,
            expires_at=expires_at,
            email=f"{role}-{user_id[:8]}@example.com",
        )
        return User(user_id, token)

    return DevFile(
        url=stack.url,
        tenant_id=known.tenant_id,
        admin=user(known.admin_id, "admin"),
        customer=user(known.customer_id, "customer"),
        other_customer=user(known.other_customer_id, "customer"),
        other_tenant=OtherTenant(
            known.other_tenant_id, user(known.other_admin_id, "admin", tenant_id=known.other_tenant_id)
        ),
        api_key=await _api_key(stack),
        database_url=stack.settings.database_url,
        redis_url=stack.settings.redis_url,
        cloudsim_url=stack.cloudsim_url,
        cloudsim_token=known.cloudsim_token,
        modelsim_url=stack.modelsim_url,
        pids={},
    )


async def _api_key(stack: Stack) -> str:
    """The home's API key, or a new one where this database does not have it (a new or another database)."""
    known = stack.secrets.api_key
    if known:
        async with httpx.AsyncClient(trust_env=False, timeout=KEY_CHECK_S_MAX) as client:
            answer = await client.get(f"{stack.url}/v1/instances", headers={"X-Api-Key": known})
        if answer.status_code != HTTPStatus.UNAUTHORIZED:
            return known
    async with await AsyncConnection.connect(stack.settings.database_url, autocommit=True) as connection:
        made = await create_api_key(connection, tenant_id=stack.secrets.tenant_id, name="development")
    stack.home.save_api_key(made)
    return made
