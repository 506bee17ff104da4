"""The sweep: what the providers have against what the log says, one listing a provider.

It is the net under the saga, not part of it: servers that nobody accounts for (only ours, by the installation label; only
after a grace, seen twice), servers that are gone, and labels that somebody changed.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import NamedTuple
from uuid import UUID

import structlog

from events import commands as c
from events.sql import Statements
from workers.deps import Deps
from workers.providers.base import Provider, ProviderError, Server
from workers.provision import instance_labels
from workers.sql import run
from workers.user_data import server_name

_SQL = Statements("workers", "sweep.sql")
_ACCOUNTED = _SQL["accounted"]
_SIGHT = _SQL["sight"]
_FORGET_OTHERS = _SQL["forget_others"]
_MISS = _SQL["miss"]
_FORGET_FOUND = _SQL["forget_found"]

#: An orphan is removed, and a server called vanished, at the second look at the earliest.
LOOKS_MIN = 2

#: How long a server must have been missing: two sweeps at the same moment are one look.
MISSING_S_MIN = 1.0

#: A server being made whose instance changed this recently is not called vanished: providers may show it late.
SETTLED_S = 30.0

#: Where most servers are missing, a wrong token is likelier than their loss: it is not believed before the orphans' grace has
#: passed, and of more servers than this never.
MISSING_MAX = 10

_log = structlog.get_logger(__name__)


class Account(NamedTuple):
    """What the log says about one instance's server."""

    instance_id: UUID
    lane: int
    status: str
    attempt: int
    server_id: str | None
    provider: str | None
    settled: bool

    def owns(self, server: Server) -> bool:
        """Whether `server` is, or may be about to be recorded as, this instance's, whatever its provider is called now."""
        if self.status in {"deleted", "failed"}:
            return False
        if self.server_id is not None:
            return self.server_id == server.id
        return server.labels.get("hc-attempt") == str(self.attempt)

    @property
    def may_vanish(self) -> bool:
        """Whether its server must exist, and long enough to be shown."""
        standing = self.status == "running" or (self.status == "provisioning" and self.settled)
        return standing and self.server_id is not None


class Finding(NamedTuple):
    """One thing that is not as it should be, and in `action` what is done about it.

    `kind`: `orphan`, `vanished`, `wrong_labels`, `wrong_provider`, where the log has the server under another name of the
    catalogue's than it was found under, or `reappeared`, where its instance was given up because it seemed to have vanished.
    """

    provider: str
    kind: str
    server_id: str
    instance_id: UUID | None
    action: str


async def sweep(deps: Deps, *, dry_run: bool) -> list[Finding]:
    """Compare and mend; with `dry_run` only compare. A provider that does not answer is left for the next time."""
    findings: list[Finding] = []
    for name, provider in deps.providers.items():
        try:
            servers = await provider.find_servers({"hc-installation": deps.settings.installation})
            findings += await _compare(deps, name, provider, servers, dry_run=dry_run)
        except ProviderError as error:
            _log.warning("sweep_failed", provider=name, code=error.code)
    for finding in findings:
        facts = finding._asdict() | {"instance_id": str(finding.instance_id)}
        _log.warning("sweep_found", dry_run=dry_run, **facts)
    return findings


async def _compare(deps: Deps, name: str, provider: Provider, servers: list[Server], *, dry_run: bool) -> list[Finding]:
    claims = {server.id: _claims(server) for server in servers}
    parameters = {
        "provider": name,
        "ids": [instance_id for claimed in claims.values() for instance_id in claimed],
        "settled_s": SETTLED_S,
    }
    accounts = [Account(*row) for row in await run(deps.pool, _ACCOUNTED, parameters)]
    by_id = {account.instance_id: account for account in accounts}
    by_server = {account.server_id: account for account in accounts if account.server_id and account.provider == name}
    findings: list[Finding] = []
    orphans: list[str] = []
    for server in servers:
        claimed = claims[server.id]
        candidates = [by_server.get(server.id), *map(by_id.get, claimed)]
        account = next((one for one in candidates if one is not None and one.owns(server)), None)
        with _one_by_one(name, server.id):
            if account is None:
                orphans.append(server.id)
                claimant = claimed[0] if claimed else None
                findings.append(await _orphan(deps, name, provider, server, claimant, dry_run=dry_run))
            elif account.provider != name:
                action = f"left alone: the log has it at {account.provider}"
                findings.append(Finding(name, "wrong_provider", server.id, account.instance_id, action))
            elif account.status == "error":
                action = "left alone: it goes when its instance is deleted"
                findings.append(Finding(name, "reappeared", server.id, account.instance_id, action))
            elif account.server_id == server.id:
                findings += await _mend_labels(deps, name, provider, server, account, dry_run=dry_run)
    if not dry_run:
        await run(deps.pool, _FORGET_OTHERS, {"provider": name, "server_ids": orphans})
    return findings + await _look_for_missing(
        deps, name, provider, _missing_of(name, servers, accounts), dry_run=dry_run
    )


class Missing(NamedTuple):
    """Accounts whose servers are not listed, of how many that should be."""

    accounts: list[Account]
    expected: int

    @property
    def are_most(self) -> bool:
        """Whether the listing may well be of another project."""
        return len(self.accounts) > 1 and len(self.accounts) > self.expected / 2


def _missing_of(name: str, servers: list[Server], accounts: list[Account]) -> Missing:
    """What the listing `servers` of provider `name` lacks."""
    listed = {server.id for server in servers}
    expected = [account for account in accounts if account.provider == name and account.may_vanish]
    return Missing([account for account in expected if account.server_id not in listed], len(expected))


async def _look_for_missing(
    deps: Deps, name: str, provider: Provider, missing: Missing, *, dry_run: bool
) -> list[Finding]:
    """A server that is not listed may only have lost its label, so it is asked for by id."""
    wait_s = MISSING_S_MIN
    if missing.are_most:
        count = len(missing.accounts)
        _log.error("most_servers_missing", provider=name, missing=count, expected=missing.expected)
        if count > MISSING_MAX:
            return []
        wait_s = max(wait_s, deps.settings.orphan_grace_s)
    findings: list[Finding] = []
    still_missing: list[str] = []
    for account in missing.accounts:
        assert account.server_id is not None
        with _one_by_one(name, account.server_id):
            still_missing.append(account.server_id)
            server = await provider.get_server(account.server_id)
            if server is not None and server.name == server_name(account.instance_id):
                still_missing.remove(account.server_id)
                findings += await _mend_labels(deps, name, provider, server, account, dry_run=dry_run)
            else:
                findings.append(await _vanished(deps, account, wait_s=wait_s, dry_run=dry_run))
    if not dry_run:
        await run(deps.pool, _FORGET_FOUND, {"provider": name, "missing": still_missing})
    return findings


@contextmanager
def _one_by_one(provider: str, server_id: str) -> Generator[None]:
    """A server that the provider does not let us touch must not keep the others from being looked at."""
    try:
        yield
    except ProviderError as error:
        _log.warning("sweep_of_server_failed", provider=provider, server_id=server_id, code=error.code)


def _claims(server: Server) -> list[UUID]:
    """The instances that it may be of, by its label and by its name: somebody may have changed either."""
    found: list[UUID] = []
    for text in (server.labels.get("hc-instance", ""), server.name.removeprefix("hc-")):
        with suppress(ValueError):
            found.append(UUID(text))
    return found


async def _orphan(
    deps: Deps, name: str, provider: Provider, server: Server, instance_id: UUID | None, *, dry_run: bool
) -> Finding:
    if dry_run:
        return Finding(name, "orphan", server.id, instance_id, "would be watched, then removed")
    rows = await run(deps.pool, _SIGHT, {"provider": name, "server_id": server.id})
    sightings, seen_s = rows[0]
    if sightings < LOOKS_MIN or seen_s < deps.settings.orphan_grace_s:
        return Finding(name, "orphan", server.id, instance_id, "watched")
    await provider.delete_server(server.id)
    return Finding(name, "orphan", server.id, instance_id, "removed")


async def _mend_labels(
    deps: Deps, name: str, provider: Provider, server: Server, account: Account, *, dry_run: bool
) -> list[Finding]:
    wanted = {**instance_labels(deps, account.instance_id), "hc-attempt": str(account.attempt)}
    if all(server.labels.get(key) == value for key, value in wanted.items()):
        return []
    if not dry_run:
        await provider.set_labels(server.id, {**server.labels, **wanted})
    action = "would be labelled again" if dry_run else "labelled again"
    return [Finding(name, "wrong_labels", server.id, account.instance_id, action)]


async def _vanished(deps: Deps, account: Account, *, wait_s: float, dry_run: bool) -> Finding:
    """What follows from a look that missed a server. That it has vanished cannot be taken back, so one look is not enough."""
    assert account.provider is not None
    assert account.server_id is not None
    finding = Finding(account.provider, "vanished", account.server_id, account.instance_id, "watched")
    if dry_run:
        return finding._replace(action="would be watched, then reported")
    rows = await run(deps.pool, _MISS, {"provider": account.provider, "server_id": account.server_id})
    misses, missed_s = rows[0]
    if misses < LOOKS_MIN or missed_s < wait_s:
        return finding
    command = c.ReportServerVanished(at_ms=deps.now_ms(), attempt=account.attempt, server_id=account.server_id)
    await deps.store.execute(account.instance_id, command, deps.origin(account.instance_id, actor="sweeper"))
    return finding._replace(action="reported")
