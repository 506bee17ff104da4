"""`fleet`: how many instances there are, or were, in each status, at each provider, region and tier."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from hydracore.cli.printing import Time, json_option, print_json, say
from hydracore.cli.running import load, on_database

if TYPE_CHECKING:
    from projections.fleet_queries import FleetCount

_STEPS: Final = {"hour": timedelta(hours=1), "day": timedelta(days=1)}


@click.command()
@click.option("--at", type=Time(), help="Count at this time, rounded down to the hour; default: now.")
@click.option("--from", "first", type=Time(), help="Count repeatedly from this time on, rounded down to the hour.")
@click.option(
    "--to",
    "last",
    type=Time(ends=True),
    help="With --from: the last time to count at (a date means its end); default: now.",
)
@click.option(
    "--every",
    type=click.Choice(list(_STEPS)),
    help="With --from: the interval; default: day. At most 400 counts.",
)
@json_option
def fleet(
    *,
    at: datetime | None,
    first: datetime | None,
    last: datetime | None,
    every: Literal["hour", "day"] | None,
    as_json: bool,
) -> None:
    """Count instances, now or over time.

    Counts by status, provider, region and tier. Events that the relay has not processed yet are not counted.
    With --json, a time without instances has one object, with 0 instances and null for all else.
    """
    from projections.fleet_queries import fleet_counts

    if first is None and every is not None:
        raise click.UsageError("--every requires --from.")
    times = _times(at, first, last, _STEPS[every or "day"])
    found = on_database(load(), lambda pool: fleet_counts(pool, times))
    by_time = {time: list["FleetCount"]() for time in times}
    for one in found:
        by_time[one.at].append(one)
    if as_json:
        print_json([one for time, counts in by_time.items() for one in counts or [_no_instances(time)]])
    else:
        _show(by_time)


def _times(at: datetime | None, first: datetime | None, last: datetime | None, step: timedelta) -> list[datetime]:
    """The times to count at. Raises `click.UsageError`."""
    from projections.fleet_queries import TIMES_MAX

    now = datetime.now(UTC)
    if first is None:
        if last is not None:
            raise click.UsageError("--to requires --from.")
        return [now if at is None or at > now else _full_hour(at)]
    if at is not None:
        raise click.UsageError("Give either --at or --from.")
    until = now if last is None else min(last, now)
    if first > until:
        raise click.UsageError("--from must not be after --to, or after now.")
    begin = _full_hour(first)
    count = (until - begin) // step + 1
    # Without --to, the last time is now, even if the last interval is not over yet.
    ends_now = last is None and begin + (count - 1) * step < now
    if count + ends_now > TIMES_MAX:
        raise click.UsageError(
            f"These are {count + ends_now} times to count at, but at most {TIMES_MAX} are allowed: shorten the range or use --every day."
        )
    return [begin + number * step for number in range(count)] + [now] * ends_now


def _full_hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


def _no_instances(at: datetime) -> dict[str, Any]:
    """The object of a time without instances, which would otherwise be missing in the JSON."""
    return {"at": at, "status": None, "provider": None, "region_id": None, "tier_id": None, "instances": 0}


def _show(by_time: "dict[datetime, list[FleetCount]]") -> None:
    for time, counts in by_time.items():
        # Not by strftime: glibc's writes the year 1 without zeros.
        say(
            f"{time.replace(tzinfo=None).isoformat(timespec='seconds')}Z  {sum(one.instances for one in counts)} in all"
        )
        for one in counts:
            where = f"{one.provider or 'no provider yet'}, {one.region_id}, {one.tier_id}"
            say(f"{one.instances:>8}  {one.status:<12}  {where}")
