"""`token create`, and `api-key create`, `list` and `revoke`: manage access to the API."""

import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from uuid import UUID

import click

from hydracore import settings as configuration
from hydracore.audit.timestamps import time_text
from hydracore.cli.printing import Text, json_option, print_json, say
from hydracore.cli.running import APPLICATION, failures, load, on_connection
from hydracore.signals import run_to_completion

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from hydracore.auth import ApiKey

T = TypeVar("T")

SECONDS_A_DAY: Final = 86_400


class Id(Text):
    """The id of a tenant or a user."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from hydracore.auth import ID_PATTERN

        if re.match(ID_PATTERN, value, re.ASCII) is None:
            self.fail(f"{value!r} is not a valid id: use 1 to 128 letters, digits or . _ : @ -", param, ctx)
        return value


tenant_option = click.option("--tenant", type=Id(), required=True, help="The tenant's id.")


@click.group()
def token() -> None:
    """Create bearer tokens for users."""


@token.command("create")
@tenant_option
@click.option("--user", type=Id(), required=True, help="The user's id.")
@click.option("--role", type=click.Choice(["customer", "admin", "platform"]), required=True, help="The user's role.")
@click.option("--email", default=None, help="The user's e-mail address.")
@click.option(
    "--days", type=click.IntRange(1, 3650), default=30, show_default=True, help="Days until the token expires."
)
def create_token(
    *, tenant: str, user: str, role: Literal["customer", "admin", "platform"], email: str | None, days: int
) -> None:
    """Create a bearer token and print it."""
    import msgspec

    from hydracore.auth import issue_token

    settings = load(require=configuration.TOKEN_NEEDS)
    expires_at = time.time() + days * SECONDS_A_DAY
    try:
        signed = issue_token(
            settings.jwt_secret, tenant_id=tenant, user_id=user, role=role, expires_at=expires_at, email=email
        )
    except msgspec.ValidationError as error:
        raise click.UsageError(str(error)) from None
    say(signed)


@click.group("api-key")
def api_key() -> None:
    """Create, list and revoke tenants' API keys."""


@api_key.command("create")
@tenant_option
@click.option("--name", type=Text(), default="default", show_default=True, help="A name to tell the key from others.")
def create_key(*, tenant: str, name: str) -> None:
    """Create an API key and print it.

    Save it: only its hash is stored, and it cannot be shown again.
    """
    from hydracore.auth import create_api_key

    say(_on_database(lambda connection: create_api_key(connection, tenant_id=tenant, name=name)))


@api_key.command("list")
@tenant_option
@json_option
def list_keys(*, tenant: str, as_json: bool) -> None:
    """List a tenant's API keys, including revoked ones.

    Shows their ids, names and times. The keys themselves are not stored.
    """
    from hydracore.auth import list_api_keys

    found = _on_database(lambda connection: list_api_keys(connection, tenant))
    if not found:
        # Not an error as for commands that read the log: a new tenant's key is often made before anything else.
        say(f"hydracore: tenant {tenant!r} has no API keys", err=True)
    if as_json:
        print_json([{name: value for name, value in key._asdict().items() if name != "tenant_id"} for key in found])
        return
    for key in found:
        say(f"{key.id}  {key.name!r}  created {time_text(key.created_at)}  {_state(key)}")


@api_key.command("revoke")
@click.argument("key_id", type=click.UUID)
def revoke_key(*, key_id: UUID) -> None:
    """Revoke an API key, immediately and permanently.

    KEY_ID is shown by `api-key list`. Revoking a key again changes nothing.
    """
    from hydracore.auth import revoke_api_key

    key = _on_database(lambda connection: revoke_api_key(connection, key_id))
    if key is None:
        raise click.UsageError(f"There is no API key {key_id}")
    say(f"{key.id}  {key.name!r}  of tenant {key.tenant_id}  {_state(key)}")


def _state(key: "ApiKey") -> str:
    return "in use" if key.revoked_at is None else f"revoked {time_text(key.revoked_at)}"


def _on_database(work: "Callable[[AsyncConnection], Awaitable[T]]") -> T:
    """The result of `work` on a connection as the login role. A failure becomes one line and an exit status."""
    from hydracore.db.pool import conninfo

    settings = load()
    as_login = conninfo(settings.database_url, role="", application=APPLICATION)
    with failures():
        return run_to_completion(on_connection(as_login, settings, work))
