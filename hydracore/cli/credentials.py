"""`token create` and `api-key create`: let somebody in."""

import asyncio
import os
import time
from typing import Final, Literal

import click

from hydracore import settings as configuration

SECONDS_A_DAY: Final = 86_400


@click.group()
def token() -> None:
    """Bearer tokens of users."""


@token.command("create")
@click.option("--tenant", required=True, help="The tenant's id.")
@click.option("--user", required=True, help="The user's id.")
@click.option(
    "--role", type=click.Choice(["customer", "admin", "platform"]), required=True, help="What the user may do."
)
@click.option("--email", default=None, help="The user's e-mail address.")
@click.option(
    "--days", type=click.IntRange(1, 3650), default=30, show_default=True, help="How long the token is good for."
)
def create_token(
    *, tenant: str, user: str, role: Literal["customer", "admin", "platform"], email: str | None, days: int
) -> None:
    """Sign a token and print it."""
    import msgspec

    from hydracore.auth import issue_token

    settings = configuration.load(os.environ, require=configuration.TOKEN_NEEDS)
    expires_at = time.time() + days * SECONDS_A_DAY
    try:
        signed = issue_token(
            settings.jwt_secret, tenant_id=tenant, user_id=user, role=role, expires_at=expires_at, email=email
        )
    except msgspec.ValidationError as error:
        raise click.UsageError(str(error)) from None
    click.echo(signed)


@click.group("api-key")
def api_key() -> None:
    """API keys of tenants' backends."""


@api_key.command("create")
@click.option("--tenant", required=True, help="The tenant's id.")
@click.option("--name", default="default", show_default=True, help="What the key is for, to tell it from others.")
def create_key(*, tenant: str, name: str) -> None:
    """Make a key and print it. It cannot be shown again."""
    import psycopg

    settings = configuration.load(os.environ, require=configuration.DATABASE_NEEDS)
    try:
        click.echo(asyncio.run(new_api_key(settings.database_url, tenant_id=tenant, name=name)))
    except psycopg.Error as error:
        raise click.ClickException(" ".join(str(error).split())) from None


async def new_api_key(database_url: str, *, tenant_id: str, name: str) -> str:
    """A new key, committed. Raises psycopg's errors."""
    import psycopg

    from hydracore.auth import create_api_key

    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        return await create_api_key(connection, tenant_id=tenant_id, name=name)
