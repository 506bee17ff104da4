"""`audit erase-customer`: make a customer's personal data unreadable, in the log, in read tables and in backups."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import click

from hydracore import settings as configuration
from hydracore.cli.printing import Text, escaped, json_option, operator, print_json, say
from hydracore.cli.running import fail, failures, load, on_database
from hydracore.wording import plural

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

    from hydracore.audit.erasing import Customer, Eraser, ErasureProgress, ErasureResult
    from hydracore.settings import Settings

#: Exit status where the question was not answered with yes.
NOT_CONFIRMED: Final = 2

#: What was done and what remains, for an interruption or failure while the order was written, after it was recorded, and after
#: the key was destroyed.
ORDER_BEGUN: Final = (
    "this has destroyed no key; if the order got into the file, the next `db migrate` or API start destroys the key; once the file "
    "can be written, run the same command again"
)
ORDER_RECORDED: Final = (
    "the order is recorded and stays in force: the next `db migrate` or API start destroys the key; run the same command again "
    "to complete it"
)
KEY_DESTROYED: Final = (
    "the key is destroyed; run the same command again to record the erasure in the customer's instances"
)


@click.command("erase-customer")
@click.argument("customer", type=Text())
@click.option(
    "--tenant", type=Text(), help="The customer's tenant. Required if several tenants have a customer of this id."
)
@click.option(
    "--also-live", is_flag=True, help="Erase even if instances are not deleted. Their servers keep their data."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def erase_customer(*, customer: str, tenant: str | None, also_live: bool, yes: bool, as_json: bool) -> None:
    """Make a customer's personal data unreadable for good.

    Destroys the customer's key and records the erasure in each of their instances. This cannot be undone. It takes at
    least 15 seconds, to wait for events that are being written.

    If an earlier run was interrupted, this completes it. Erasing a customer again changes nothing.
    """
    from hydracore.audit import erasing
    from hydracore.cli.audit_view import progress_bar

    settings = load(require=configuration.ERASURE_NEEDS)
    found = on_database(settings, lambda pool: erasing.find_customer(pool, customer, tenant_id=tenant))
    if not also_live:
        with failures():
            erasing.require_all_deleted(found)
    if not yes and not _is_confirmed(found):
        fail("Nothing was erased", NOT_CONFIRMED)
    status = list[str]()
    try:
        with progress_bar("recording") as progress:
            progress.begin(found.instances)
            callbacks = erasing.ErasureProgress(
                order_begun=lambda: status.append(ORDER_BEGUN),
                order_recorded=lambda: status.append(ORDER_RECORDED),
                key_destroyed=lambda: status.append(KEY_DESTROYED),
                instances_done=progress.advance,
            )
            erased = on_database(settings, lambda pool: _erase(settings, pool, found, callbacks, status))
    except KeyboardInterrupt:
        if status:
            raise KeyboardInterrupt(f"interrupted: {status[-1]}") from None
        raise
    if as_json:
        print_json(erased)
    else:
        _show(erased)


def _is_confirmed(customer: "Customer") -> bool:
    live = f", {len(customer.live)} of them not deleted" if customer.live else ""
    instances = plural(customer.instances, "instance")
    whose = "its history" if customer.instances == 1 else "their histories"
    question = (
        f"Customer {customer.customer_id} of tenant {customer.tenant_id} has {instances}{live}. "
        f"Make all personal data in {whose} unreadable for good?"
    )
    try:
        return click.confirm(escaped(question), err=True)
    except click.Abort:  # Nobody is there to answer.
        return False


async def _erase(
    settings: "Settings",
    pool: "AsyncConnectionPool",
    customer: "Customer",
    callbacks: "ErasureProgress",
    status: list[str],
) -> "ErasureResult":
    """Erase the customer. If that fails once `status` has a message, raises `ErasureInterrupted` with the last one."""
    import psycopg

    from events.errors import StoreUnavailable
    from hydracore.audit.errors import ErasureInterrupted
    from hydracore.db.error_text import one_line

    async with open_eraser(settings, pool, actor=operator()) as opened:
        try:
            return await opened.erase(customer, callbacks)
        except (OSError, psycopg.Error, StoreUnavailable) as error:
            if not status:
                raise
            raise ErasureInterrupted(one_line(error), status[-1]) from None


@asynccontextmanager
async def open_eraser(settings: "Settings", pool: "AsyncConnectionPool", *, actor: str) -> AsyncGenerator["Eraser"]:
    """An `Eraser` on an open pool."""
    from events.store import EventStore
    from hydracore.audit.erasing import Eraser
    from hydracore.audit.erasure_file import ErasureFile
    from projections.inline import inline_projections

    assert settings.erasure_file is not None, "the setting is required where this is used"
    store = EventStore(pool, inline=inline_projections())
    file = ErasureFile(settings.erasure_file)
    try:
        yield Eraser(pool, store, file, actor=actor, correlation_id=uuid4(), clock=lambda: datetime.now(UTC))
    finally:
        await store.close()


def _show(erased: "ErasureResult") -> None:
    who = f"customer {erased.customer_id} of tenant {erased.tenant_id}"
    if not erased.key_destroyed and not erased.recorded:
        say(f"{who} was already erased; nothing was left to do")
        return
    key = "key destroyed" if erased.key_destroyed else "the key was destroyed before"
    say(f"{who}: {key}, recorded in {erased.recorded} of {plural(erased.instances, 'instance')}")
    if erased.live:
        are = "is" if erased.live == 1 else "are"
        what = f"{plural(erased.live, 'instance')} {are} not deleted"
        say(f"note: {what}: their servers keep the customer's data until they are")
