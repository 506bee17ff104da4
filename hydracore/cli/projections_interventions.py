"""`projections skip`, `unskip` and `retry`: get a parked lane going again. Each is recorded, with who did it and why."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from events.ids import LANES, SEQ_MAX
from hydracore.cli.printing import json_option, operator
from hydracore.cli.projections_running import known_name, on_database

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from projections.operations import Intervention

_lane = click.option("--lane", type=click.IntRange(0, LANES - 1), required=True, help="The lane's number.")
_SEQ = click.IntRange(1, SEQ_MAX)
_event = click.option("--event", "seq", type=_SEQ, required=True, help="The event's number in its lane.")


def _not_blank(_context: click.Context, _option: click.Parameter, text: str) -> str:
    if not text.strip():
        raise click.BadParameter("must not be blank.")
    return text


_reason = click.option(
    "--reason", required=True, callback=_not_blank, help="The reason, to be recorded with your user name."
)


@click.command()
@click.argument("name")
@_lane
@_event
@click.option("--version", type=int, help="Skip it in the unfinished build of this version.")
@_reason
@json_option
def skip(*, name: str, lane: int, seq: int, version: int | None, reason: str, as_json: bool) -> None:
    """Skip an event that a projection fails to apply.

    This must be the event at which the lane is parked or, with --version, one that an unfinished build has yet to
    apply. The intervention is recorded.
    """
    from projections import operations

    by = operations.Author(operator(), reason)
    if version is None:
        work = partial(operations.skip, name=name, lane=lane, seq=seq, by=by)
    else:
        work = partial(operations.skip_in_build, name=name, lane=lane, seq=seq, by=by, version=version)
    _intervene(name, work, as_json=as_json)


@click.command()
@click.argument("name")
@_lane
@_event
@_reason
@json_option
def unskip(*, name: str, lane: int, seq: int, reason: str, as_json: bool) -> None:
    """Apply a skipped event again in the next rebuild.

    The intervention is recorded.
    """
    from projections import operations

    work = partial(operations.unskip, name=name, lane=lane, seq=seq, by=operations.Author(operator(), reason))
    _intervene(name, work, as_json=as_json)


@click.command()
@click.argument("name")
@_lane
@click.option("--event", "seq", type=_SEQ, help="Fail unless the lane is parked at this event.")
@_reason
@json_option
def retry(*, name: str, lane: int, seq: int | None, reason: str, as_json: bool) -> None:
    """Retry the event at which a lane is parked, now.

    The intervention is recorded.
    """
    from projections import operations

    work = partial(operations.retry, name=name, lane=lane, seq=seq, by=operations.Author(operator(), reason))
    _intervene(name, work, as_json=as_json)


def _intervene(
    name: str, work: "Callable[[AsyncConnection], Coroutine[Any, Any, Intervention]]", *, as_json: bool
) -> None:
    from hydracore.cli.projections_view import show_intervention

    known_name(name)
    show_intervention(on_database(work), as_json=as_json)
