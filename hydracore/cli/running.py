"""Shared by commands: loading settings, using the database, and failures as one line with an exit status."""

import os
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from hydracore import settings as configuration
from hydracore.cli.exit_status import FOUND, NOT_DONE
from hydracore.cli.printing import say
from hydracore.files import describe_disk_error
from hydracore.settings import Settings
from hydracore.signals import run_to_completion

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg_pool import AsyncConnectionPool

POOL_SIZE: Final = 2
#: The name in pg_stat_activity.
APPLICATION: Final = "hydracore-audit"

T = TypeVar("T")


def load(*, require: Collection[str] = configuration.DATABASE_NEEDS) -> Settings:
    return configuration.load(os.environ, require=require)


def conninfo(settings: Settings) -> str:
    """The connection string with the app's role, which may read and append."""
    from hydracore.db import pool

    return pool.conninfo(settings.database_url, role=settings.database_role, application=APPLICATION)


def on_database(settings: Settings, work: "Callable[[AsyncConnectionPool], Coroutine[Any, Any, T]]") -> T:
    """The result of `work` on an open pool. A failure becomes one line and an exit status."""
    from hydracore.db import pool as pools

    async def connected() -> T:
        opening = pools.open_pool(
            settings.database_url,
            role=settings.database_role,
            application=APPLICATION,
            size=POOL_SIZE,
            prepared=settings.database_prepared,
        )
        async with opening as pool:
            return await work(pool)

    check_database(settings)
    with failures():
        return run_to_completion(connected())


async def on_connection(conninfo: str, settings: Settings, work: "Callable[[AsyncConnection], Awaitable[T]]") -> T:
    """The result of `work` on a new connection to a database with all migrations. Raises `DatabaseUnusable`."""
    import psycopg

    from hydracore.db.readiness import require_migrated

    connecting = psycopg.AsyncConnection.connect(
        conninfo, autocommit=True, prepare_threshold=settings.prepare_threshold
    )
    async with await connecting as connection:
        await require_migrated(connection)
        return await work(connection)


def check_database(settings: Settings) -> None:
    """Check that the database can be used. A failure becomes one line and an exit status."""
    from hydracore.db import pool

    with failures():
        pool.check_database(settings.database_url, role=settings.database_role, application=APPLICATION)


@contextmanager
def failures() -> Generator[None]:
    """Turn failures within the context into one line and an exit status."""
    from concurrent.futures.process import BrokenProcessPool

    import psycopg

    from events.errors import EventUnreadable, LogCorrupted, StoreUnavailable
    from hydracore.audit import errors as audit
    from hydracore.db import MigrationError
    from hydracore.db.backup import BackupFailed
    from hydracore.db.error_text import one_line
    from hydracore.db.readiness import DatabaseUnusable
    from hydracore.db.restore import RestoreFailed, RestoreRefused

    try:
        yield
    except (LogCorrupted, audit.CopyContradicts, audit.ErasureNotRecorded) as error:
        fail(str(error), FOUND)
    except BrokenPipeError:
        raise  # The reader of the output has closed it. `root` ends the command without a message.
    except (
        audit.CopyEmpty,
        audit.CopyMissing,
        audit.ErasureInterrupted,
        audit.ErasuresUnknown,
        audit.ParquetBroken,
    ) as error:
        fail(str(error), NOT_DONE)
    except (audit.AuditError, RestoreRefused) as error:
        # The rest of the audit's errors are about what was asked for.
        raise click.UsageError(str(error)) from None
    except MemoryError:
        fail("Not enough memory", NOT_DONE)
    except BrokenProcessPool:
        fail("A worker process was killed, perhaps for lack of memory: try fewer --workers", NOT_DONE)
    except OSError as error:
        fail(one_line(describe_disk_error(error)), NOT_DONE)
    except (
        psycopg.Error,
        DatabaseUnusable,
        StoreUnavailable,
        EventUnreadable,
        MigrationError,
        BackupFailed,
        RestoreFailed,
    ) as error:
        # libpq's messages name host, port and user, but never the password.
        fail(one_line(error), NOT_DONE)


def fail(text: str, status: int) -> NoReturn:
    say(f"hydracore: {text}", err=True)
    raise SystemExit(status)
