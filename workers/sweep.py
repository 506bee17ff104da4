"""The sweep: compares the servers at the providers with the log, with one listing per provider.

It is a safety net beside the saga. It finds orphans (only servers with our installation's label, removed only after a grace period and
a second sighting), servers that have vanished, and labels that somebody changed.
"""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

import structlog

from events import commands as c
from events.ids import lane_of
from events.lifecycle import ERROR
from events.retries import run
from events.sql import Statements
from workers.deps import Deps
from workers.findings import Account, Finding, NotCompared, Project, SweepReport, carried_out
from workers.histories import HISTORY_UNREADABLE, HistoryUnreadable, reading_history
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
from workers.user_data import server_name

_SQL = Statements("workers", "sweep.sql")
_ACCOUNTED = _SQL["accounted"]
_INTENTS = _SQL["intents"]
_ELSEWHERE = _SQL["elsewhere"]
_MISS = _SQL["miss"]
_FORGET_FOUND = _SQL["forget_found"]

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
    report = SweepReport([], await _out_of_reach(deps))
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
        facts = finding._asdict() | {"instance_id": str(finding.instance_id)}
        _log.warning("sweep_found", dry_run=dry_run, **facts)
    return report


async def _out_of_reach(deps: Deps) -> list[NotCompared]:
    """The providers in the catalogue or in the log that this process cannot access."""
    rows = await run(deps.pool, _ELSEWHERE, {"looked_at": list(deps.providers)})
    held, missing = {row[0] for row in rows}, deps.catalogue.unusable_providers
    configured = [NotCompared(name, why, needed=name in held) for name, why in missing.items()]
    return configured + [NotCompared(name, "not in the catalogue") for name in sorted(held - missing.keys())]


async def _compare(project: Project, report: SweepReport, servers: list[Server]) -> Orphans:
    """Check the servers that instances account for, and look for missing ones. Returns the orphans."""
    deps, name = project.deps, project.name
    claimed = {server.id: claimed_instance_ids(server) for server in servers}
    named = [instance_id for ids in claimed.values() for instance_id in ids]
    parameters = {"provider": name, "settled_s": SETTLED_S, "ids": named, "lanes": list(map(lane_of, named))}
    accounts = [Account(*row) for row in await run(deps.pool, _ACCOUNTED, parameters)]
    by_id = {account.instance_id: account for account in accounts}
    by_server = {account.server_id: account for account in accounts if account.server_id and account.provider == name}
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
        if owner.account is not None:
            intent = intents.get(owner.account.instance_id)
            report.findings.extend(await _look_at(project, server, owner.account, intent=intent))
        elif owner.holder is not None:
            action = "left alone: the log assigns it to the instance, but the read table does not"
            report.findings.append(Finding(name, "misread", server.id, owner.holder, action))
        else:
            orphans.append(Orphan(server, ids[0] if ids else None, known=owner.known))
    await _look_for_missing(project, report, _missing_of(name, servers, accounts))
    return Orphans(orphans, len(servers))


class _Owner(NamedTuple):
    """The owner of a server, if it has one.

    `account`: the instance that has the server, or waits for one, in the read table. `holder`: the instance that has it only in the
    log. Without both, the server is an orphan, and `known` says whether it was created for an attempt in the log.
    """

    account: Account | None = None
    holder: UUID | None = None
    known: bool = False


async def _owner_of(deps: Deps, server: Server, candidates: list[Account], claimed: list[UUID]) -> _Owner:
    """Find the owner of `server`. Raises `HistoryUnreadable`.

    `candidates`: the accounts that may own it. `claimed`: the instance ids in its label and in its name.
    """
    recorded = next((one for one in candidates if one.owns(server)), None)
    if recorded is not None:
        return _Owner(account=recorded)
    # The log is read after the servers were listed: unless it was restored, it has the instances of all of them. It decides, whatever
    # the read table says, because a removal cannot be undone.
    accounts = {one.instance_id: one for one in candidates}
    known = False
    for instance_id in dict.fromkeys((*accounts, *claimed)):
        with reading_history(instance_id):
            state = await deps.store.load(instance_id)
        if state is None:
            continue
        if state.attempt is not None and has_server(state.attempt, server):
            account = accounts.get(instance_id)
            return _Owner(account) if account is not None and account.awaits_one else _Owner(holder=instance_id)
        known = known or is_accounted_for(state, server)
    return _Owner(known=known)


async def _look_at(project: Project, server: Server, account: Account, *, intent: str | None) -> list[Finding]:
    """Check a server that an instance accounts for. It is never removed here. `intent`: see `_repair_labels`."""
    finding = Finding(project.name, "wrong_provider", server.id, account.instance_id, "left alone")
    if account.provider != project.name:
        return [finding._replace(action=f"left alone: in the log its provider is {account.provider}")]
    if account.status == ERROR:
        return [finding._replace(kind="reappeared", action="left alone: it is removed when its instance is deleted")]
    if account.server_id == server.id:
        return await _repair_labels(project, server, account, intent=intent)
    return []


class Missing(NamedTuple):
    """The servers that a listing lacks, with their ids and accounts. `expected`: the number of servers that it should have in all."""

    servers: list[tuple[str, Account]]
    expected: int

    @property
    def are_most(self) -> bool:
        """Whether more than one server is missing, and more than half of all, so that the listing may be another project's."""
        return len(self.servers) > 1 and len(self.servers) > self.expected / 2


def _missing_of(name: str, servers: list[Server], accounts: list[Account]) -> Missing:
    """The servers of `accounts` that the listing `servers` of provider `name` lacks."""
    listed = {server.id for server in servers}
    shown = [(account.shown_id, account) for account in accounts if account.provider == name]
    expected = [(server_id, account) for server_id, account in shown if server_id is not None]
    return Missing([each for each in expected if each[0] not in listed], len(expected))


async def _look_for_missing(project: Project, report: SweepReport, missing: Missing) -> None:
    """Ask for each missing server by its id, because it may only have lost its label. Watch and report those that are gone."""
    name = project.name
    wait_s = MISSING_S_MIN
    if missing.are_most:
        count = len(missing.servers)
        _log.error("most_servers_missing", provider=name, missing=count, expected=missing.expected)
        if count > MISSING_MAX:
            if not project.dry_run:
                await _forget_found(project, [server_id for server_id, _ in missing.servers])
            report.not_compared.append(NotCompared(name, f"{count} of {missing.expected} servers are missing"))
            return
        wait_s = max(wait_s, project.deps.settings.orphan_grace_s)
    found: list[str] = []
    for server_id, account in missing.servers:
        finding = Finding(name, "vanished", server_id, account.instance_id, "watched")
        try:
            server = await project.provider.get_server(server_id)
        except ProviderError as error:
            report.findings.append(finding._replace(action="could not be checked", code=error.code))
            continue
        if server is not None and server.name == server_name(account.instance_id):
            found.append(server.id)
            report.findings.extend(await _repair_labels(project, server, account))
        else:
            report.findings.append(await _vanished(project, finding, account, wait_s=wait_s))
    if not project.dry_run:
        await _forget_found(project, [server_id for server_id, _ in missing.servers if server_id not in found])


async def _forget_found(project: Project, missing: list[str]) -> None:
    """Forget all servers that were missed earlier except `missing`. If one of them is missed again, its time starts again."""
    await run(project.deps.pool, _FORGET_FOUND, {"provider": project.name, "missing": missing})


async def _repair_labels(
    project: Project, server: Server, account: Account, *, intent: str | None = None
) -> list[Finding]:
    """Restore the labels that identify the server's instance and attempt.

    `intent`: the label value of the account's attempt. If None, that label is not compared, but it is written with the others.
    """
    deps = project.deps
    wanted = {**instance_labels(deps.settings.installation, account.instance_id), ATTEMPT: str(account.attempt)}
    if intent is not None:
        wanted[INTENT] = intent
    if all(server.labels.get(key) == value for key, value in wanted.items()):
        return []
    finding = Finding(project.name, "wrong_labels", server.id, account.instance_id, "labelled again")
    if project.dry_run:
        return [finding._replace(action="would be labelled again")]
    try:
        with reading_history(account.instance_id):
            state = await deps.store.load(account.instance_id)
    except HistoryUnreadable:
        return [finding._replace(action="could not be labelled again", code=HISTORY_UNREADABLE)]
    if state is None or state.attempt is None or state.attempt.server_id != server.id:
        # The instance has changed meanwhile; the next sweep looks again.
        return []
    ours = server_labels(deps.settings.installation, account.instance_id, state.attempt)
    labelled = project.provider.set_labels(server.id, {**server.labels, **ours})
    return [await carried_out(finding, labelled, refused="could not be labelled again")]


async def _vanished(project: Project, finding: Finding, account: Account, *, wait_s: float) -> Finding:
    """Record that a server was missed, and report it as vanished if it was first missed `wait_s` seconds ago or earlier.

    One look is not enough, because the report cannot be taken back.
    """
    deps = project.deps
    if project.dry_run:
        return finding._replace(action="would be watched, then reported")
    ((missed_s,),) = await run(deps.pool, _MISS, {"provider": finding.provider, "server_id": finding.server_id})
    if missed_s < wait_s:
        return finding
    command = c.ReportServerVanished(at_ms=deps.now_ms(), attempt=account.attempt, server_id=finding.server_id)
    try:
        with reading_history(account.instance_id):
            await deps.store.execute(account.instance_id, command, deps.origin(account.instance_id, actor="sweeper"))
    except HistoryUnreadable:
        return finding._replace(action="could not be reported", code=HISTORY_UNREADABLE)
    return finding._replace(action="reported")
