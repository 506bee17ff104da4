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

#: The default of --after: longer than anything takes that goes well, but for a slow provider.
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

    Lists instances whose next step is due and not done, servers that no instance accounts for or that are missing at
    their provider, parked lanes, and whether a relay runs. It changes nothing and asks no provider.

    Exit status: 0 nothing is stuck; 1 something is; 3 the database cannot be reached.
    """
    from workers.stuck import INSTANCES_MAX, find_stuck

    found = on_database(load(), lambda pool: find_stuck(pool, after_s=after_s))
    if as_json:
        print_json(found)
    else:
        _show(found)
    if len(found.instances) == INSTANCES_MAX:
        say(f"hydracore: only the {INSTANCES_MAX} instances that are stuck longest are shown", err=True)
    if found.count:
        raise SystemExit(FOUND)


def _show(found: "Stuck") -> None:
    now = datetime.now(UTC)
    for instance in found.instances:
        say(_instance_line(instance, now))
    for server in found.servers:
        why = {"unaccounted": "no instance accounts for it", "missing": "its provider does not show it"}[server.what]
        say(f"server {quoted(server.server_id)} at {server.provider}: {why}, for {_age(server.since, now)}")
    for lane in found.lanes:
        say(f"lane {lane.lane} of {lane.follower}: parked at event {lane.event}: {brief(lane.error)}")
    if found.relay_absent:
        seen_at = found.relay_seen_at
        since = "has run yet" if seen_at is None else f"has run for {_age(seen_at, now)}"
        say(f"relay: none {since}")
    say(f"{found.count} stuck" if found.count else "nothing is stuck")


def _instance_line(instance: "StuckInstance", now: datetime) -> str:
    where = instance.status if instance.provider is None else f"{instance.status} at {instance.provider}"
    why = "it waits for its provider or for a worker"
    if instance.code is not None:
        why = f"{plural(instance.failures, 'failure')}: {instance.code} ({instance.message})"
    due = _age(instance.due_since, now)
    return f"instance {instance.id} of {quoted(instance.tenant_id)}, {where}, due for {due}: {why}"


def _age(since: datetime, now: datetime) -> str:
    """Hours, minutes and seconds, such as `0:14:03`. The database's clock may be ahead of this one."""
    return str(timedelta(seconds=max(0, int((now - since).total_seconds()))))
