"""What a sweep compares and what it comes to."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import NamedTuple
from uuid import UUID

from events.lifecycle import DELETED, FAILED, PROVISIONING, RUNNING, Status
from workers.deps import Deps
from workers.providers.base import Provider, ProviderError, Server


class Project(NamedTuple):
    """What is swept: all that we have at the provider that the catalogue calls `name`."""

    deps: Deps
    name: str
    provider: Provider
    dry_run: bool


class Account(NamedTuple):
    """What the log says about one instance's server."""

    instance_id: UUID
    lane: int
    status: Status
    attempt: int
    server_id: str | None
    provider: str | None
    settled: bool

    @property
    def has_ended(self) -> bool:
        return self.status in {DELETED, FAILED}

    def owns(self, server: Server) -> bool:
        """Whether `server` is recorded as this instance's, whatever its provider is called now."""
        return not self.has_ended and self.server_id == server.id

    @property
    def awaits_one(self) -> bool:
        """Whether a server may be about to be recorded as this instance's."""
        return not self.has_ended and self.server_id is None

    @property
    def shown_id(self) -> str | None:
        """The id of its server, where that must exist, and has existed for long enough to be shown."""
        is_there = self.status == RUNNING or (self.status == PROVISIONING and self.settled)
        return self.server_id if is_there else None


class Finding(NamedTuple):
    """One thing that is not as it should be, in `action` what is done about it, and in `code` why it could not be done.

    `kind`: `orphan`, `vanished`, `wrong_labels`, `wrong_provider`, where the log has the server under another name of the
    catalogue's than it was found under, `reappeared`, where its instance was given up because it seemed to have vanished, `misread`, where
    an instance has it in the log and none in the read table, or `unreadable`, where nobody can say whether an instance accounts for it,
    because its history cannot be read.
    """

    provider: str
    kind: str
    server_id: str
    instance_id: UUID | None
    action: str
    code: str | None = None


class Unlooked(NamedTuple):
    """A provider that could not be compared with the log. `needed`: whether the log has instances there."""

    provider: str
    why: str
    needed: bool = True


class Swept(NamedTuple):
    """What a sweep came to."""

    findings: list[Finding]
    unlooked: list[Unlooked]

    @property
    def is_whole(self) -> bool:
        """Whether it has looked at everything that the log has, and done all that was to be done."""
        return not any(one.needed for one in self.unlooked) and not any(found.code for found in self.findings)


async def done(finding: Finding, work: Awaitable[None], *, refused: str) -> Finding:
    """The finding once it is done; or with the action `refused`, where the provider does not let us. The others go on."""
    try:
        await work
    except ProviderError as error:
        return finding._replace(action=refused, code=error.code)
    return finding
