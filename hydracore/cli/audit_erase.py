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

    from hydracore.audit.erasing import Customer, Erased, Eraser, Steps
    from hydracore.settings import Settings

#: Exit status where the question was not answered with yes.
NOT_CONFIRMED: Final = 2

#: What was done and what is left, for an interruption or failure after the order was recorded (`ORDERED`), and after
#: the key was destroyed (`HALF_DONE`).
ORDERED: Final = (
    "the order is recorded and stays in force: the next `db migrate` or API start destroys the key; run the same command again "
    "to complete it"
)
HALF_DONE: Final = "the key is destroyed; run the same command again to record the erasure in the customer's instances"


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
    found = on_database(settings, lambda pool: erasing.find(pool, customer, tenant_id=tenant))
    if not also_live:
        with failures():
            erasing.refuse_live(found)
    if not yes and not _is_wanted(found):
        fail("Nothing was erased", NOT_CONFIRMED)
    left = list[str]()
    try:
        with progress_bar("recording") as progress:
            progress.begin(found.instances)
            steps = erasing.Steps(
                ordered=lambda: left.append(ORDERED), destroyed=lambda: left.append(HALF_DONE), told=progress.advance
            )
            erased = on_database(settings, lambda pool: _erase(settings, pool, found, steps, left))
    except KeyboardInterrupt:
        if left:
            raise KeyboardInterrupt(f"interrupted: {left[-1]}") from None
        raise
    if as_json:
        print_json(erased)
    else:
        _show(erased)


def _is_wanted(customer: "Customer") -> bool:
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
    settings: "Settings", pool: "AsyncConnectionPool", customer: "Customer", steps: "Steps", left: list[str]
) -> "Erased":
    """Erase the customer. If that fails once `left` holds a message, raises `CutOff` with its last one."""
    import psycopg

    from events.errors import StoreUnavailable
    from hydracore.audit.errors import CutOff
    from hydracore.db.error_text import one_line

    async with eraser(settings, pool, actor=operator()) as opened:
        try:
            return await opened.erase(customer, steps)
        except (psycopg.Error, StoreUnavailable) as error:
            if not left:
                raise
            raise CutOff(one_line(error), left[-1]) from None


@asynccontextmanager
async def eraser(settings: "Settings", pool: "AsyncConnectionPool", *, actor: str) -> AsyncGenerator["Eraser"]:
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


def _show(erased: "Erased") -> None:
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
