"""Orphans: servers of this installation that no instance accounts for.

An orphan that was created for an attempt in the log is removed. The others are unaccounted: they were created after the backup that
the log was restored from, or belong to another log. A few of these are removed as well, because they cost money. If they are many, or
most of the listed servers, they are removed only if an operator says so, because a removal cannot be undone.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

import structlog
from msgspec.structs import replace

from events.retries import run
from events.sql import Statements
from workers.labels import INSTANCE
from workers.providers.base import Server
from workers.sweep_findings import Finding, NotCompared, Project, SweepReport, carry_out

_SQL = Statements("workers", "sweep.sql")
_RECORD_SIGHTING = _SQL["record_sighting"]
_DELETE_OTHERS = _SQL["delete_others"]

#: The most unaccounted servers that are removed without an operator's order.
UNACCOUNTED_MAX = 3

_log = structlog.get_logger(__name__)


class Orphan(NamedTuple):
    """`instance_id`: the instance that its labels or its name refer to. `known`: whether it was created for an attempt in the log."""

    server: Server
    instance_id: UUID | None
    known: bool


class Orphans(NamedTuple):
    """The orphans at one provider. `listed`: the number of servers that it lists in all."""

    all: list[Orphan]
    listed: int

    @property
    def unaccounted(self) -> int:
        return sum(not orphan.known for orphan in self.all)

    @property
    def are_too_many(self) -> bool:
        """Whether the unaccounted ones are too many, or most of several listed servers, so that they may belong to another log."""
        count = self.unaccounted
        return count > UNACCOUNTED_MAX or (count > 1 and count > self.listed / 2)


def claimed_instance_ids(server: Server) -> list[UUID]:
    """The instance ids in its label and in its name. Both count, as somebody may have changed either."""
    found: list[UUID] = []
    for text in (server.labels.get(INSTANCE, ""), server.name.removeprefix("hc-")):
        with suppress(ValueError):
            found.append(UUID(text))
    return found


async def handle_orphans(project: Project, report: SweepReport, orphans: Orphans, *, remove_unaccounted: bool) -> None:
    """Watch the orphans, and remove them after the grace period.

    Too many unaccounted ones are left alone. With `remove_unaccounted`, unaccounted ones are removed at once, however many they are.
    """
    name = project.name
    to_watch = orphans.all
    if orphans.are_too_many and not remove_unaccounted:
        count = orphans.unaccounted
        _log.error("most_servers_unaccounted", provider=name, unaccounted=count, listed=orphans.listed)
        report.not_compared.append(NotCompared(name, f"the log has no record of {count} of {orphans.listed} servers"))
        to_watch = [orphan for orphan in orphans.all if orphan.known]
        for server, instance_id, known in orphans.all:
            if not known:
                report.findings.append(
                    Finding(name, "orphan", server.id, instance_id, "left alone: unknown to the log")
                )
    for orphan in to_watch:
        at_once = remove_unaccounted and not orphan.known
        report.findings.append(await _watch_or_remove(project, orphan, at_once=at_once))
    if not project.dry_run:
        # Servers that are left alone are forgotten, too. Once they are few, a new grace period begins, in which an operator can act.
        await run(
            project.deps.pool, _DELETE_OTHERS, {"provider": name, "server_ids": [one.server.id for one in to_watch]}
        )


async def _watch_or_remove(project: Project, orphan: Orphan, *, at_once: bool) -> Finding:
    deps, server = project.deps, orphan.server
    removed = Finding(project.name, "orphan", server.id, orphan.instance_id, "removed")
    if project.dry_run:
        action = "would be removed" if at_once else "would be watched, then removed"
        return replace(removed, action=action if orphan.known else f"{action}: unknown to the log")
    if not at_once:
        # However short the grace period, a server is removed at the second sighting at the earliest: at the first, `seen_s` is 0.
        ((seen_s,),) = await run(deps.pool, _RECORD_SIGHTING, {"provider": project.name, "server_id": server.id})
        if seen_s < deps.settings.orphan_grace_s:
            return replace(removed, action="watched")
    return await carry_out(removed, project.provider.delete_server(server.id), action_if_refused="could not be removed")
