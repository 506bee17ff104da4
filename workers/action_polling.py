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
from workers.providers.base import RATE_LIMITED, UNREACHABLE, Action, Provider, ProviderError
from workers.sql import OPERATIONS
from workers.unreadable_histories import HistoryUnreadable, reading_history

_PENDING_ACTIONS = OPERATIONS["pending_actions"]

#: The most servers of one provider per poll: twenty requests of 25 actions each.
SERVERS_PER_POLL_MAX = 500

_log = structlog.get_logger(__name__)


class PendingAction(NamedTuple):
    provider: str
    action_id: str
    instance_id: UUID
    attempt: int
    server_id: str


async def poll_actions(deps: Deps) -> None:
    """Record all servers that are running now or have failed. A provider that does not answer is asked again at the next poll."""
    pending = [PendingAction(*row) for row in await run(deps.pool, _PENDING_ACTIONS, (SERVERS_PER_POLL_MAX,))]
    for name in sorted({one.provider for one in pending}):
        provider = deps.providers.get(name)
        if provider is None:
            _log.warning("provider_not_configured", provider=name)
            continue
        try:
            await _poll_provider(deps, provider, [one for one in pending if one.provider == name])
        except ProviderError as error:
            _log.warning("observation_failed", provider=name, code=error.code)


async def _poll_provider(deps: Deps, provider: Provider, pending: list[PendingAction]) -> None:
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
            # An instance whose history cannot be read is polled again each time. It must not stop the others.
            with suppress(HistoryUnreadable), reading_history(one.instance_id):
                await _record(deps, one.instance_id, command)


async def _record(deps: Deps, instance_id: UUID, command: c.RecordServerRunning | c.FailAttempt) -> None:
    try:
        await deps.store.execute(instance_id, command, deps.origin(instance_id))
    except NotFound:
        _log.error("row_without_stream", instance_id=str(instance_id))


async def _command(
    deps: Deps, provider: Provider, one: PendingAction, action: Action | None
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
