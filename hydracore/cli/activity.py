"""`activity`: who did what in a tenant, by day."""

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from hydracore.cli.credentials import Id
from hydracore.cli.printing import Text, json_option, print_json, say
from hydracore.cli.running import load, on_database
from hydracore.wording import plural

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

    from projections.activity_queries import ActivityLine

#: How many days before the last one are shown by default.
DAYS: Final = 30


class _Day(click.ParamType[date]):
    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        try:
            return value if isinstance(value, date) else date.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a date such as 2026-11-23", param, ctx)


@click.command()
@click.argument("tenant", type=Id())
@click.option("--from", "first", type=_Day(), help=f"First day (UTC); default: {DAYS} days before --to.")
@click.option("--to", "last", type=_Day(), help="Last day (UTC); default: today.")
@click.option("--actor", type=Text(), help="Only this actor (admin:ops), or all actors of a kind (admin).")
@json_option
def activity(*, tenant: str, first: date | None, last: date | None, actor: str | None, as_json: bool) -> None:
    """Show who did what in a tenant, by day.

    Prints the latest first, at most 1000 lines. Events that the relay has not processed yet are not shown.

    Exit status: 0 done; 2 the log has no such tenant; 3 the database cannot be reached.
    """
    from hydracore.audit.history import require_tenant
    from projections.activity_queries import LINES_MAX, tenant_activity

    last = last or datetime.now(UTC).date()
    # Without `date` underflowing, where `last` is near the first day that it can hold.
    first = first or max(last, date.min + timedelta(days=DAYS)) - timedelta(days=DAYS)
    if first > last:
        raise click.UsageError("--from must not be after --to.")

    async def work(pool: "AsyncConnectionPool") -> "list[ActivityLine]":
        found = await tenant_activity(pool, tenant, first=first, last=last, actor=actor)
        if not found:
            await require_tenant(pool, tenant)
        return found

    found = on_database(load(), work)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if len(found) == LINES_MAX:
        text = f"only the latest {LINES_MAX} lines are shown; use --to for earlier ones, or narrow them down with --from or --actor"
        say(f"hydracore: {text}", err=True)


def _show(found: "list[ActivityLine]") -> None:
    for one in found:
        did = f"{one.command} {plural(one.commands, 'time')}, {plural(one.events, 'event')}"
        say(f"{one.day}  {one.actor}  {did}  {one.first_at:%H:%M:%S} to {one.last_at:%H:%M:%S}")
