"""`up`: everything on this machine, until Ctrl-C."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hydracore.cli.printing import Folder, say

if TYPE_CHECKING:
    from hydracore.cli.development import DevFile


@click.command()
@click.option(
    "--home",
    type=Folder(),
    default=".hydracore",
    show_default=True,
    help="Directory for data, logs and secrets.",
)
@click.option("--port", type=click.IntRange(1, 65_535), default=8080, show_default=True, help="Port of the API.")
@click.option("--workers", type=click.IntRange(1, 16), default=1, show_default=True, help="Number of worker processes.")
def up(*, home: Path, port: int, workers: int) -> None:
    """Run everything on this machine until Ctrl-C.

    Starts PostgreSQL and Valkey too. To use your own instead, set HYDRACORE_DATABASE_URL and HYDRACORE_REDIS_URL.
    """
    from hydracore.signals import run_until_signal

    run_until_signal(_run_until_stopped(home, port=port, workers=workers))


async def _run_until_stopped(path: Path, *, port: int, workers: int) -> None:
    import asyncio
    import os

    from hydracore.cli.development import development
    from hydracore.embedded.home import Home

    home = Home(path)
    say(f"starting in {home.path} ...")
    try:
        async with development(
            home, port=port, workers=workers, environ=os.environ, on_failure=lambda line: say(line, err=True)
        ) as (stack, file):
            if stack.data is not None and home.path not in stack.data.parents:
                say(
                    f"the database is in {stack.data}, because the account that runs PostgreSQL cannot access {home.path}"
                )
            # Not escaped, because it is to be pasted. All of it comes from the user of this command.
            click.echo(introduction(file, home.path))
            try:
                await asyncio.Event().wait()
            finally:
                say("stopping ...")
    except asyncio.CancelledError:
        say("stopped")
        raise


def introduction(file: "DevFile", home: Path) -> str:
    """What to do next, ready to paste. The id of the instance is known in advance, because it derives from the key."""
    import secrets
    import shlex
    import sys

    from events.ids import instance_id_for

    key = f"try-{secrets.token_hex(4)}"
    instance = instance_id_for(tenant_id=file.tenant_id, customer_id=file.customer.user_id, idempotency_key=key)
    body = f'{{"region_id": "local", "tier_id": "starter", "agent_name": "Ada", "idempotency_key": "{key}"}}'
    ask = 'curl -s -H "Authorization: Bearer $TOKEN"'
    send = f"{ask} -H 'Content-Type: application/json'"
    env, program = (shlex.quote(str(path)) for path in (home / "env", Path(sys.executable).with_name("hydracore")))
    return f"""
HydraCore is up at {file.url}
  logs   {home / "logs"}
  access {home / "dev.json"}
  env    {home / "env"}, the settings for other commands, as in
         (set -a; . {env}; {program} sweep --dry-run)

To try it, paste:
  TOKEN={file.customer.token}
  {send} -d '{body}' {file.url}/v1/instances
  {ask} {file.url}/v1/instances/{instance}
  {ask} {file.url}/v1/instances/{instance}/logs
  {ask} {file.url}/v1/instances/{instance}/runtime
  {send} -d '{{"message": "Hello"}}' {file.url}/v1/instances/{instance}/chat
  {send} -N -H 'Accept: text/event-stream' -d '{{"message": "Count to 20"}}' {file.url}/v1/instances/{instance}/chat
  {ask} -X DELETE {file.url}/v1/instances/{instance}

Ctrl-C stops everything; data stays.
"""
