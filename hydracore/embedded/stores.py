"""Checks that the stores answer, the user's own or the embedded ones, and migrates the database."""

import asyncio
from typing import Final

import psycopg

from hydracore.db import MigrationError, migrate, pool, readiness
from hydracore.db.readiness import DatabaseUnusable
from hydracore.embedded.errors import DatabaseRefused, RedisRefused, StoresRefused
from hydracore.embedded.valkey import answers
from hydracore.settings import Settings

#: The name of its connections in pg_stat_activity.
APPLICATION: Final = "hydracore-up"


async def check_and_migrate(settings: Settings) -> None:
    """Migrate the database to this version, and check that the parts can act as their role there.

    Nothing is changed in it before both stores answer. Raises `StoresRefused` with the problems of both.
    """
    redis_answers, database_problem = await asyncio.gather(answers(settings.redis_url), _database_problem(settings))
    refused = [
        *([] if database_problem is None else [DatabaseRefused(str(database_problem))]),
        *([] if redis_answers else [RedisRefused()]),
    ]
    if refused:
        raise StoresRefused(refused)
    try:
        await asyncio.to_thread(_migrate, settings)
    except (MigrationError, DatabaseUnusable, psycopg.Error) as error:
        raise StoresRefused([DatabaseRefused(str(error))]) from None


async def _database_problem(settings: Settings) -> DatabaseUnusable | None:
    """Why the database cannot be used; None where it can, if only after a migration."""
    conninfo = pool.conninfo(settings.database_url, role="", application=APPLICATION)
    try:
        await readiness.check_ready(conninfo, role=settings.database_role)
    except readiness.NotMigrated:
        return None
    except DatabaseUnusable as error:
        return error


def _migrate(settings: Settings) -> None:
    migrate(settings.database_url)
    pool.check_database(settings.database_url, role=settings.database_role, application=APPLICATION)
