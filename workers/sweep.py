"""The sweep: compares the servers at the providers with the log, with one listing per provider.

It is a safety net beside the saga. It finds orphans (only servers with our installation's label, removed only after a grace period and
a second sighting), servers that have vanished, and labels that somebody changed.
"""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

import msgspec
import structlog
from msgspec.structs import asdict, replace

from events import commands as c
from events.ids import lane_of
from events.lifecycle import ERROR
from events.retries import run
from events.sql import Statements
from workers.deps import Deps
from workers.labels import (
    ATTEMPT,
    INSTALLATION,
    INTENT,
    INTENT_LENGTH,
    has_server,
    instance_labels,
    is_accounted_for,
    server_labels,
)
from workers.orphans import Orphan, Orphans, claimed_instance_ids, handle_orphans
from workers.providers.base import ProviderError, Server
from workers.sweep_findings import Finding, InstanceRecord, NotCompared, Project, SweepReport, SweepResult, carry_out
from workers.unreadable_histories import HISTORY_UNREADABLE, HistoryUnreadable, reading_history
from workers.user_data import server_name

_SQL = Statements("workers", "sweep.sql")
_INSTANCE_RECORDS = _SQL["instance_records"]
_INTENTS = _SQL["intents"]
_OTHER_PROVIDERS = _SQL["other_providers"]
_RECORD_MISSING = _SQL["record_missing"]
_DELETE_FOUND = _SQL["delete_found"]
_RECORD_RESULT = _SQL["record_result"]

#: How long a server must have been missing before it is reported. More than 0, as two sweeps at the same moment count as one look.
MISSING_S_MIN = 1.0

#: A server that is being created is not called vanished for this long after its instance's last change: providers may show it late.
SETTLED_S = 30.0

#: If most servers are missing, a token of the wrong project is likelier than their loss. Then up to this number of servers are reported
#: as vanished, after the grace period of orphans. More are never reported.
MISSING_MAX = 10

_log = structlog.get_logger(__name__)


async def sweep(deps: Deps, *, dry_run: bool, remove_unaccounted: bool = False) -> SweepReport:
    """Compare the providers with the log, and repair the differences unless `dry_run`. What fails is left for the next sweep.

    `remove_unaccounted`: remove unaccounted servers (see `workers.orphans`) at once, because an operator says that nobody needs them.
    """
    report = SweepReport([], await _inaccessible_providers(deps))
    for name, provider in deps.providers.items():
        try:
            servers = await provider.find_servers({INSTALLATION: deps.settings.installation})
        except ProviderError as error:
            report.not_compared.append(NotCompared(name, error.code))
        else:
            project = Project(deps, name, provider, dry_run)
            orphans = await _compare(project, report, servers)
            await handle_orphans(project, report, orphans, remove_unaccounted=remove_unaccounted)
    for one in report.not_compared:
        if one.needed:
            _log.warning("sweep_failed", provider=one.provider, why=one.why)
    for finding in report.findings:
        _log.warning("sweep_found", dry_run=dry_run, **asdict(finding))
    if not dry_run:
        await run(deps.pool, _RECORD_RESULT, {"result": msgspec.json.encode(SweepResult.of(report)).decode()})
    return report


async def _inaccessible_providers(deps: Deps) -> list[NotCompared]:
    """The providers in the catalogue or in the log that this process cannot access."""
    rows = await run(deps.pool, _OTHER_PROVIDERS, {"looked_at": list(deps.providers)})
    in_log, missing = {row[0] for row in rows}, deps.catalogue.unusable_providers
    configured = [NotCompared(name, why, needed=name in in_log) for name, why in missing.items()]
    return configured + [NotCompared(name, "not in the catalogue") for name in sorted(in_log - missing.keys())]


async def _compare(project: Project, report: SweepReport, servers: list[Server]) -> Orphans:
    """Check the servers that instances account for, and look for missing ones. Returns the orphans."""
    deps, name = project.deps, project.name
    claimed = {server.id: claimed_instance_ids(server) for server in servers}
    named = [instance_id for ids in claimed.values() for instance_id in ids]
    parameters = {"provider": name, "settled_s": SETTLED_S, "ids": named, "lanes": list(map(lane_of, named))}
    records = [InstanceRecord(*row) for row in await run(deps.pool, _INSTANCE_RECORDS, parameters)]
    by_id = {record.instance_id: record for record in records}
    by_server = {record.server_id: record for record in records if record.server_id and record.provider == name}
    listed = {"provider": name, "server_ids": list(claimed), "length": INTENT_LENGTH}
    intents: dict[UUID, str] = dict(await run(deps.pool, _INTENTS, listed))
    orphans: list[Orphan] = []
    for server in servers:
        ids = claimed[server.id]
        candidates = [one for one in (by_server.get(server.id), *map(by_id.get, ids)) if one is not None]
        try:
            owner = await _owner_of(deps, server, candidates, ids)
        except HistoryUnreadable as error:
            # The server may be that instance's, and a removal cannot be undone.
            finding = Finding(name, "unreadable", server.id, error.instance_id, "left alone", code=HISTORY_UNREADABLE)
            report.findings.append(finding)
            continue
        if owner.record is not None:
            intent = intents.get(owner.record.instance_id)
            report.findings.extend(await _check_owned(project, server, owner.record, intent=intent))
        elif owner.holder is not None:
            action = "left alone: the log assigns it to the instance, but the read table does not"
            report.findings.append(Finding(name, "misread", server.id, owner.holder, action))
        else:
            orphans.append(Orphan(server, ids[0] if ids else None, known=owner.known))
    await _check_missing(project, report, _missing_of(name, servers, records))
    return Orphans(orphans, len(servers))


class _Owner(NamedTuple):
    """The owner of a server, if it has one.

    `record`: the instance that has the server, or waits for one, in the read table. `holder`: the instance that has it only in the
    log. Without both, the server is an orphan, and `known` says whether it was created for an attempt in the log.
    """

    record: InstanceRecord | None = None
    holder: UUID | None = None
    known: bool = False


async def _owner_of(deps: Deps, server: Server, candidates: list[InstanceRecord], claimed: list[UUID]) -> _Owner:
    """Find the owner of `server`. Raises `HistoryUnreadable`.

    `candidates`: the records that may own it. `claimed`: the instance ids in its label and in its name.
    """
    recorded = next((one for one in candidates if one.owns(server)), None)
    if recorded is not None:
        return _Owner(record=recorded)
    # The log is read after the servers were listed: unless it was restored, it has the instances of all of them. It decides, whatever
    # the read table says, because a removal cannot be undone.
    records = {one.instance_id: one for one in candidates}
    known = False
    for instance_id in dict.fromkeys((*records, *claimed)):
        with reading_history(instance_id):
            state = await deps.store.load(instance_id)
        if state is None:
            continue
        if state.attempt is not None and has_server(state.attempt, server):
            record = records.get(instance_id)
            return _Owner(record) if record is not None and record.awaits_server else _Owner(holder=instance_id)
        known = known or is_accounted_for(state, server)
    return _Owner(known=known)


async def _check_owned(
    project: Project, server: Server, record: InstanceRecord, *, intent: str | None
) -> list[Finding]:
    """Check a server that an instance accounts for. It is never removed here. `intent`: see `_repair_labels`."""
    finding = Finding(project.name, "wrong_provider", server.id, record.instance_id, "left alone")
    if record.provider != project.name:
        return [replace(finding, action=f"left alone: in the log its provider is {record.provider}")]
    if record.status == ERROR:
        return [replace(finding, kind="reappeared", action="left alone: it is removed when its instance is deleted")]
    if record.server_id == server.id:
        return await _repair_labels(project, server, record, intent=intent)
    return []


class Missing(NamedTuple):
    """The servers that a listing lacks, with their ids and records. `expected`: the number of servers that it should have in all."""

    servers: list[tuple[str, InstanceRecord]]
    expected: int

    @property
    def are_most(self) -> bool:
        """Whether more than one server is missing, and more than half of all, so that the listing may be another project's."""
        return len(self.servers) > 1 and len(self.servers) > self.expected / 2


def _missing_of(name: str, servers: list[Server], records: list[InstanceRecord]) -> Missing:
    """The servers of `records` that the listing `servers` of provider `name` lacks."""
    listed = {server.id for server in servers}
    shown = [(record.expected_server_id, record) for record in records if record.provider == name]
    expected = [(server_id, record) for server_id, record in shown if server_id is not None]
    return Missing([each for each in expected if each[0] not in listed], len(expected))


async def _check_missing(project: Project, report: SweepReport, missing: Missing) -> None:
    """Ask for each missing server by its id, because it may only have lost its label. Watch and report those that are gone."""
    name = project.name
    wait_s = MISSING_S_MIN
    if missing.are_most:
        count = len(missing.servers)
        _log.error("most_servers_missing", provider=name, missing=count, expected=missing.expected)
        if count > MISSING_MAX:
            if not project.dry_run:
                await _delete_found(project, [server_id for server_id, _ in missing.servers])
            report.not_compared.append(NotCompared(name, f"{count} of {missing.expected} servers are missing"))
            return
        wait_s = max(wait_s, project.deps.settings.orphan_grace_s)
    found: list[str] = []
    for server_id, record in missing.servers:
        finding = Finding(name, "vanished", server_id, record.instance_id, "watched")
        try:
            server = await project.provider.get_server(server_id)
        except ProviderError as error:
            report.findings.append(replace(finding, action="could not be checked", code=error.code))
            continue
        if server is not None and server.name == server_name(record.instance_id):
            found.append(server.id)
            report.findings.extend(await _repair_labels(project, server, record))
        else:
            report.findings.append(await _report_vanished(project, finding, record, wait_s=wait_s))
    if not project.dry_run:
        await _delete_found(project, [server_id for server_id, _ in missing.servers if server_id not in found])


async def _delete_found(project: Project, missing: list[str]) -> None:
    """Forget all servers that were missed earlier except `missing`. If one of them is missed again, its time starts again."""
    await run(project.deps.pool, _DELETE_FOUND, {"provider": project.name, "missing": missing})


async def _repair_labels(
    project: Project, server: Server, record: InstanceRecord, *, intent: str | None = None
) -> list[Finding]:
    """Restore the labels that identify the server's instance and attempt.

    `intent`: the label value of the record's attempt. If None, that label is not compared, but it is written with the others.
    """
    deps = project.deps
    wanted = {**instance_labels(deps.settings.installation, record.instance_id), ATTEMPT: str(record.attempt)}
    if intent is not None:
        wanted[INTENT] = intent
    if all(server.labels.get(key) == value for key, value in wanted.items()):
        return []
    finding = Finding(project.name, "wrong_labels", server.id, record.instance_id, "labelled again")
    if project.dry_run:
        return [replace(finding, action="would be labelled again")]
    try:
        with reading_history(record.instance_id):
            state = await deps.store.load(record.instance_id)
    except HistoryUnreadable:
        return [replace(finding, action="could not be labelled again", code=HISTORY_UNREADABLE)]
    if state is None or state.attempt is None or state.attempt.server_id != server.id:
        # The instance has changed meanwhile; the next sweep looks again.
        return []
    ours = server_labels(deps.settings.installation, record.instance_id, state.attempt)
    labelled = project.provider.set_labels(server.id, {**server.labels, **ours})
    return [await carry_out(finding, labelled, action_if_refused="could not be labelled again")]


async def _report_vanished(project: Project, finding: Finding, record: InstanceRecord, *, wait_s: float) -> Finding:
    """Record that a server was missed, and report it as vanished if it was first missed `wait_s` seconds ago or earlier.

    One look is not enough, because the report cannot be taken back.
    """
    deps = project.deps
    if project.dry_run:
        return replace(finding, action="would be watched, then reported")
    ((missed_s,),) = await run(
        deps.pool, _RECORD_MISSING, {"provider": finding.provider, "server_id": finding.server_id}
    )
    if missed_s < wait_s:
        return finding
    command = c.ReportServerVanished(at_ms=deps.now_ms(), attempt=record.attempt, server_id=finding.server_id)
    try:
        with reading_history(record.instance_id):
            await deps.store.execute(record.instance_id, command, deps.origin(record.instance_id, actor="sweeper"))
    except HistoryUnreadable:
        return replace(finding, action="could not be reported", code=HISTORY_UNREADABLE)
    return replace(finding, action="reported")
