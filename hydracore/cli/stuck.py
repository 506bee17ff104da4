"""`stuck`: what makes no progress, for whoever is on call."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import click

from hydracore.cli.exit_status import FOUND
from hydracore.cli.printing import brief, json_option, print_json, quoted, say
from hydracore.cli.running import load, on_database
from hydracore.wording import plural

if TYPE_CHECKING:
    from workers.stuck import Stuck, StuckInstance

#: The default of --after: longer than a step takes, unless its provider is slow.
AFTER_S: Final = 60
#: The longest --after, a year.
AFTER_S_MAX: Final = 366 * 86_400


@click.command()
@click.option(
    "--after",
    "after_s",
    type=click.IntRange(0, AFTER_S_MAX),
    metavar="SECONDS",
    default=AFTER_S,
    show_default=True,
    help="How long something must have made no progress.",
)
@json_option
def stuck(*, after_s: int, as_json: bool) -> None:
    """Show what makes no progress.

    Lists instances whose next step is due and not done, servers and providers that the last sweep left to an operator,
    and parked lanes. Says if no relay runs, or if no sweep ends. It changes nothing and asks no provider.

    Exit status: 0 nothing is stuck; 1 something is; 3 the database cannot be reached.
    """
    from workers.stuck import find_stuck

    settings = load()
    found = on_database(
        settings, lambda pool: find_stuck(pool, after_s=after_s, sweep_interval_s=settings.sweep_interval_s)
    )
    if as_json:
        print_json(found)
    else:
        _show(found)
    if found.count:
        raise SystemExit(FOUND)


def _show(found: "Stuck") -> None:
    now = datetime.now(UTC)
    for instance in found.instances:
        say(_instance_line(instance, now))
    for server in found.servers:
        whose = "" if server.instance_id is None else f", named after instance {server.instance_id}"
        why = "" if server.code is None else f" ({server.code})"
        say(f"server {quoted(server.server_id)} at {server.provider}{whose}: {server.kind}: {server.action}{why}")
    for provider in found.providers:
        say(f"provider {provider.provider}: it could not be compared with the log: {provider.why}")
    for lane in found.lanes:
        say(f"lane {lane.lane} of {lane.follower}: parked at event {lane.event}: {brief(lane.error)}")
    if found.relay_absent:
        say(f"relay: none {_absence('has run', found.relay_seen_at, now)}")
    if found.sweep_absent:
        say(f"sweep: none {_absence('has ended', found.swept_at, now)}")
    more = "" if found.is_complete else "more than "
    say(f"{more}{found.count} stuck" if found.count else "nothing is stuck")


def _instance_line(instance: "StuckInstance", now: datetime) -> str:
    where = instance.status if instance.provider is None else f"{instance.status} at {instance.provider}"
    why = "it waits for its provider or for a worker"
    if instance.code is not None:
        why = f"{plural(instance.failures, 'failure')}: {instance.code} ({instance.message})"
    due = _age(instance.due_since, now)
    return f"instance {instance.id} of {quoted(instance.tenant_id)}, {where}, due for {due}: {why}"


def _absence(has_done: str, last: datetime | None, now: datetime) -> str:
    return f"{has_done} yet" if last is None else f"{has_done} for {_age(last, now)}"


def _age(since: datetime, now: datetime) -> str:
    """Hours, minutes and seconds, such as `0:14:03`. The database's clock may be ahead of this one."""
    return str(timedelta(seconds=max(0, int((now - since).total_seconds()))))
