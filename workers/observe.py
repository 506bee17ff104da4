"""Polls the providers for the actions that create servers. In batches, because a request per server would use up the rate limit."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

import structlog

from events import commands as c
from events.errors import NotFound
from events.retries import run
from workers.deps import Deps
from workers.histories import HistoryUnreadable, reading_history
from workers.providers.base import RATE_LIMITED, UNREACHABLE, Action, Provider, ProviderError
from workers.sql import OPERATIONS

_PENDING_ACTIONS = OPERATIONS["pending_actions"]

#: The most servers per look: twenty requests of 25 actions each.
LOOK_MAX = 500

_log = structlog.get_logger(__name__)


class Pending(NamedTuple):
    provider: str
    action_id: str
    instance_id: UUID
    attempt: int
    server_id: str


async def observe_actions(deps: Deps) -> None:
    """Record all servers that are running now or have failed. A provider that does not answer is asked again at the next look."""
    pending = [Pending(*row) for row in await run(deps.pool, _PENDING_ACTIONS, (LOOK_MAX,))]
    for name in sorted({one.provider for one in pending}):
        provider = deps.providers.get(name)
        if provider is None:
            _log.warning("provider_not_configured", provider=name)
            continue
        try:
            await _observe(deps, provider, [one for one in pending if one.provider == name])
        except ProviderError as error:
            _log.warning("observation_failed", provider=name, code=error.code)


async def _observe(deps: Deps, provider: Provider, pending: list[Pending]) -> None:
    actions = {action.id: action for action in await provider.get_actions([one.action_id for one in pending])}
    for one in pending:
        try:
            command = await _command(deps, provider, one, actions.get(one.action_id))
        except ProviderError as error:
            if error.code in {RATE_LIMITED, UNREACHABLE}:
                raise
            # The error is about this one server: the others are still recorded.
            ids = {"instance_id": str(one.instance_id), "server_id": one.server_id}
            _log.warning("observation_failed", provider=one.provider, code=error.code, **ids)
            continue
        if command is not None:
            # An instance whose history cannot be read is asked about at each look. It must not stop the others.
            with suppress(HistoryUnreadable), reading_history(one.instance_id):
                await _record(deps, one.instance_id, command)


async def _record(deps: Deps, instance_id: UUID, command: c.RecordServerRunning | c.FailAttempt) -> None:
    try:
        await deps.store.execute(instance_id, command, deps.origin(instance_id))
    except NotFound:
        _log.error("row_without_stream", instance_id=str(instance_id))


async def _command(
    deps: Deps, provider: Provider, one: Pending, action: Action | None
) -> c.RecordServerRunning | c.FailAttempt | None:
    now_ms = deps.now_ms()
    if action is None:
        # The provider has forgotten the action, so the server's own status counts. Only the sweep may report a server as vanished: it
        # looks twice, and notices a token of the wrong project.
        server = await provider.get_server(one.server_id)
        is_running = server is not None and server.status == "running"
        return c.RecordServerRunning(at_ms=now_ms, attempt=one.attempt) if is_running else None
    if action.status == "success":
        return c.RecordServerRunning(at_ms=now_ms, attempt=one.attempt)
    if action.status == "error":
        code = action.error_code or "server_failed"
        return c.FailAttempt(at_ms=now_ms, attempt=one.attempt, code=code, retryable=True)
    return None
