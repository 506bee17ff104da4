"""`db migrate`: bring the database to this version's shape."""

import os

import click

from hydracore import settings as configuration


@click.group()
def db() -> None:
    """Look after the database."""


@db.command()
def migrate() -> None:
    """Apply the migrations that are missing."""
    import psycopg

    from hydracore.db import MigrationError
    from hydracore.db import migrate as apply

    settings = configuration.load(os.environ, require=configuration.DATABASE_NEEDS)
    try:
        applied = apply(settings.database_url)
    except (MigrationError, psycopg.Error) as error:
        # libpq's texts name host, port and user, never the password.
        raise click.ClickException(" ".join(str(error).split())) from None
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("nothing to apply")
