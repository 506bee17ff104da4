"""`db migrate`, `db backup` and `db restore`: update the schema, and back up data so that erasures stay effective."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from hydracore.cli.exit_status import FOUND
from hydracore.cli.printing import say
from hydracore.cli.running import failures, load
from hydracore.signals import run_to_completion
from hydracore.wording import plural

if TYPE_CHECKING:
    from hydracore.settings import Settings

#: What it means that the erasure file lacked erasures that the database has.
_OUTDATED: Final = (
    "They were added. The file was an older copy, and may lack more that a restored database does not have either: if "
    "there is a newer one, add its lines and run this again"
)

#: What was done and what remains, where the file could not be written.
_FILE_INCOMPLETE: Final = "the keys of all erased customers are destroyed; see to the file, then run this again to complete it and to record the erasures"


@click.group()
def db() -> None:
    """Migrate, back up and restore the database."""


@db.command()
def migrate() -> None:
    """Apply all pending migrations.

    After a restore, this also repeats the erasures that the backup does not have.

    Exit status: 0 done; 1 done, but the erasure file lacked erasures that the database has, or some could not be
    recorded; 3 it could not be done.
    """
    from hydracore.db import migrate as apply
    from hydracore.db.direct import require_direct

    settings = load()
    with failures():
        run_to_completion(require_direct(settings, settings.database_url))
        applied = apply(settings.database_url)
        for name in applied:
            say(f"applied {name}")
        if not applied:
            say("nothing to apply")
        added, keys, streams = run_to_completion(_erase_again(settings))
    if keys or streams:
        whose = "1 customer's key" if keys == 1 else f"{keys} customers' keys"
        say(f"erased again: {whose} destroyed, recorded in {plural(streams, 'instance')}")
    if added:
        raise SystemExit(FOUND)


@db.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--keys", "only_keys", is_flag=True, help="Back up only the customers' keys, which are otherwise left out."
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def backup(*, file: Path, only_keys: bool, force: bool) -> None:
    """Back up the database to FILE, without the customers' keys.

    Restore it with `db restore`.

    Back up the keys separately with --keys. Keep that backup elsewhere and delete it after some days: while a backup
    has an erased customer's key, the customer's data can still be read.
    """
    from hydracore.audit.atomic_file import atomic_file
    from hydracore.db.backup import back_up
    from hydracore.signals import interrupted_by_signals

    settings = load()
    with failures(), interrupted_by_signals(), atomic_file(file, replace=force) as draft:
        back_up(settings.database_url, "keys" if only_keys else "log", draft)
    what = "customers' keys" if only_keys else "everything but the customers' keys"
    say(f"{file}: {what}, {file.stat().st_size} bytes")


@db.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def restore(*, file: Path) -> None:
    """Restore a backup from FILE.

    Restore the database's backup first, into an empty database, then the keys' backup into the same database. Then
    run `db migrate`.

    If a restore fails, it changes nothing.
    """
    from hydracore.db.restore import restore as bring_back
    from hydracore.signals import interrupted_by_signals

    settings = load()
    with failures(), interrupted_by_signals():
        what = bring_back(settings.database_url, file)
    restored = "customers' keys" if what == "keys" else "everything but the customers' keys"
    say(f"{file}: restored {restored}")


async def _erase_again(settings: "Settings") -> tuple[int, int, int]:
    """Repeat the erasures that a restore has undone. Without an erasure file, require that there are none.

    Returns what `Eraser.erase_again` does. Raises `ErasureInterrupted` where the file cannot be written.
    """
    from hydracore.audit.erasing import require_no_erasures
    from hydracore.audit.errors import ErasureInterrupted
    from hydracore.cli.audit_erase import open_eraser
    from hydracore.db.pool import open_pool

    def report_outdated(added: int) -> None:
        lacked = f"{settings.erasure_file} lacked {plural(added, 'erasure')} that the database has"
        say(f"hydracore: {lacked}. {_OUTDATED}", err=True)

    opening = partial(
        open_pool, settings.database_url, application="hydracore-migrate", prepared=settings.database_prepared
    )
    if settings.erasure_file is None:
        # With the login's own role: this only reads, and the login may not be allowed to take the app's role.
        async with opening(role="", size=1) as pool:
            await require_no_erasures(pool)
        return 0, 0, 0
    async with (
        opening(role=settings.database_role, size=2) as pool,
        open_eraser(settings, pool, actor="migrate") as opened,
    ):
        try:
            return await opened.erase_again(report_outdated)
        except OSError as error:  # Of the file: the database's errors are others.
            raise ErasureInterrupted(str(error), _FILE_INCOMPLETE) from None
