"""Servers of this installation that no instance accounts for.

What the log has made and is done with is removed by itself. Of an instance that the log has never heard of it has made none: such
a server was made since the backup that the log was restored from, or belongs to another log. A few are removed as well, because
somebody pays for them; many, or most of what there is, only when an operator says so, because no removal can be undone.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

import structlog

from events.patience import run
from events.sql import Statements
from workers.findings import Finding, Project, Swept, Unlooked, done
from workers.labels import INSTANCE
from workers.providers.base import Server

_SQL = Statements("workers", "sweep.sql")
_SIGHT = _SQL["sight"]
_FORGET_OTHERS = _SQL["forget_others"]

#: More servers than this of instances that the log has never heard of are left alone, as are most of those that are listed.
UNACCOUNTED_MAX = 3

_log = structlog.get_logger(__name__)


class Orphan(NamedTuple):
    """`instance_id`: of whom it says it is; `known`: whether the log has ever heard of one that it may be of."""

    server: Server
    instance_id: UUID | None
    known: bool


class Orphans(NamedTuple):
    """Those of one provider, of how many servers that it lists."""

    all: list[Orphan]
    listed: int

    @property
    def unaccounted(self) -> int:
        return sum(not orphan.known for orphan in self.all)

    @property
    def are_too_many(self) -> bool:
        """Whether the log may well be another than the one that these servers were made by."""
        count = self.unaccounted
        return count > UNACCOUNTED_MAX or (count > 1 and count > self.listed / 2)


def claims(server: Server) -> list[UUID]:
    """The instances that it may be of, by its label and by its name: somebody may have changed either."""
    found: list[UUID] = []
    for text in (server.labels.get(INSTANCE, ""), server.name.removeprefix("hc-")):
        with suppress(ValueError):
            found.append(UUID(text))
    return found


async def look_at_orphans(project: Project, swept: Swept, orphans: Orphans, *, remove_unaccounted: bool) -> None:
    """Watch and remove them; with `remove_unaccounted` those that the log has never heard of at once, however many."""
    name = project.name
    left_alone: list[Orphan] = []
    if orphans.are_too_many and not remove_unaccounted:
        count = orphans.unaccounted
        _log.error("most_servers_unaccounted", provider=name, unaccounted=count, listed=orphans.listed)
        swept.unlooked.append(Unlooked(name, f"the log has never heard of {count} of {orphans.listed} servers"))
        left_alone = [orphan for orphan in orphans.all if not orphan.known]
    watched = [orphan for orphan in orphans.all if orphan not in left_alone]
    for server, instance_id, _ in left_alone:
        swept.findings.append(Finding(name, "orphan", server.id, instance_id, "left alone: unknown to the log"))
    for orphan in watched:
        at_once = remove_unaccounted and not orphan.known
        swept.findings.append(await _look_at(project, orphan, at_once=at_once))
    if not project.dry_run:
        # Also those that are left alone: once they are few, a grace begins in which somebody can still see to them.
        await run(
            project.deps.pool, _FORGET_OTHERS, {"provider": name, "server_ids": [one.server.id for one in watched]}
        )


async def _look_at(project: Project, orphan: Orphan, *, at_once: bool) -> Finding:
    deps, server = project.deps, orphan.server
    removed = Finding(project.name, "orphan", server.id, orphan.instance_id, "removed")
    if project.dry_run:
        action = "would be removed" if at_once else "would be watched, then removed"
        return removed._replace(action=action if orphan.known else f"{action}: unknown to the log")
    if not at_once:
        # Also a short grace demands a second sighting: at the first, none of it has passed.
        ((seen_s,),) = await run(deps.pool, _SIGHT, {"provider": project.name, "server_id": server.id})
        if seen_s < deps.settings.orphan_grace_s:
            return removed._replace(action="watched")
    return await done(removed, project.provider.delete_server(server.id), refused="could not be removed")
