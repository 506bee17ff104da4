"""The data types of a sweep: what it compares, and its results."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
from msgspec.structs import replace

from events.lifecycle import DELETED, FAILED, PROVISIONING, RUNNING, Status
from workers.deps import Deps
from workers.providers.base import Provider, ProviderError, Server

#: The most servers that a `SweepResult` lists.
SERVERS_LEFT_MAX: Final = 1_000


class Project(NamedTuple):
    """A provider project to sweep. `name`: the provider's name in the catalogue."""

    deps: Deps
    name: str
    provider: Provider
    dry_run: bool


class InstanceRecord(NamedTuple):
    """What the read table says about an instance and its server. `is_settled`: whether it has not changed for `sweep.SETTLED_S`."""

    instance_id: UUID
    lane: int
    status: Status
    attempt: int
    server_id: str | None
    provider: str | None
    is_settled: bool

    @property
    def has_ended(self) -> bool:
        return self.status in {DELETED, FAILED}

    def owns(self, server: Server) -> bool:
        """Whether `server` is recorded as this instance's. The provider's name is not compared, as it may have been changed."""
        return not self.has_ended and self.server_id == server.id

    @property
    def awaits_server(self) -> bool:
        """Whether this instance has no server yet, and one may be about to be recorded."""
        return not self.has_ended and self.server_id is None

    @property
    def expected_server_id(self) -> str | None:
        """The id of the server, if the provider must list it: it exists, and was not created only just now. Otherwise None."""
        is_there = self.status == RUNNING or (self.status == PROVISIONING and self.is_settled)
        return self.server_id if is_there else None


class Finding(msgspec.Struct, frozen=True):
    """A difference between a provider and the log. `action`: what is done about it. `code`: why that failed, None if it did not.

    `kind` is one of:

    - `orphan`: no instance accounts for the server.
    - `vanished`: the provider does not have an instance's server.
    - `wrong_labels`: the server's labels do not match its instance.
    - `wrong_provider`: the log has the server at another provider of the catalogue than the one that lists it.
    - `reappeared`: the server's instance is in status `error` because the server seemed to have vanished.
    - `misread`: an instance has the server in the log, but not in the read table.
    - `unreadable`: whether an instance accounts for the server is unknown, because its history cannot be read.
    """

    provider: str
    kind: str
    server_id: str
    instance_id: UUID | None
    action: str
    code: str | None = None

    @property
    def needs_operator(self) -> bool:
        """Whether it stays as it is until somebody acts: the sweep left the server alone, or was refused."""
        return self.code is not None or self.action.startswith("left alone")


class NotCompared(msgspec.Struct, frozen=True):
    """A provider that could not be compared with the log. `needed`: whether the log has instances there."""

    provider: str
    why: str
    needed: bool = True


class SweepReport(msgspec.Struct, frozen=True):
    """The result of a sweep."""

    findings: list[Finding]
    not_compared: list[NotCompared]

    @property
    def is_complete(self) -> bool:
        """Whether all providers at which the log has instances were compared, and every action succeeded."""
        return not any(one.needed for one in self.not_compared) and not any(found.code for found in self.findings)


class ProviderLeft(msgspec.Struct, frozen=True):
    """A provider that has servers of ours and could not be compared with the log."""

    provider: str
    why: str


class SweepResult(msgspec.Struct, frozen=True):
    """What a sweep leaves to an operator, as it is stored. `servers`: the first `SERVERS_LEFT_MAX` of `servers_count`."""

    servers: list[Finding]
    servers_count: int
    providers: list[ProviderLeft]

    @classmethod
    def of(cls, report: SweepReport) -> SweepResult:
        left = [found for found in report.findings if found.needs_operator]
        providers = [ProviderLeft(one.provider, one.why) for one in report.not_compared if one.needed]
        return cls(left[:SERVERS_LEFT_MAX], len(left), providers)


async def carry_out(finding: Finding, work: Awaitable[None], *, action_if_refused: str) -> Finding:
    """Await `work`. Returns the finding; if the provider refuses, with `action_if_refused` as its action and the error's code."""
    try:
        await work
    except ProviderError as error:
        return replace(finding, action=action_if_refused, code=error.code)
    return finding
