"""The health of agents, judged by the time at which the control plane received the last heartbeat, not by the agents' clocks."""

from __future__ import annotations

from contextlib import suppress
from uuid import UUID

import msgspec
import structlog

from events import commands as c
from events.ids import lane_of
from events.retries import run
from events.types import Health
from hydracore.agent.messages import AgentStatus, Heartbeat
from workers.deps import Deps
from workers.sql import OPERATIONS
from workers.unreadable_histories import HistoryUnreadable, reading_history

_SILENCE = OPERATIONS["silence"]
_FIRST_HEARTBEAT = OPERATIONS["first_heartbeat"]

_log = structlog.get_logger(__name__)


async def check_health(deps: Deps, instance_id: UUID) -> None:
    """Record a change of an instance's health, if there is one. Heartbeats themselves are not recorded as events."""
    limits = {"late_s": deps.settings.heartbeat_late_s, "lost_s": deps.settings.heartbeat_lost_s}
    rows = await run(deps.pool, _SILENCE, {"lane": lane_of(instance_id), "id": instance_id, **limits})
    if not rows:
        return
    silent_s, before = rows[0]
    health = health_of_silence(silent_s, **limits)
    if health == before:
        # Nothing has changed. To record this health all the same could overwrite a better one that was recorded meanwhile.
        return
    command = c.ChangeHealth(at_ms=deps.now_ms(), health=health)
    with suppress(HistoryUnreadable), reading_history(instance_id):
        outcome = await deps.store.execute(instance_id, command, deps.origin(instance_id))
        if outcome.events:
            _log.info("health_changed", instance_id=str(instance_id), health=health)


def health_of_silence(silent_s: float, *, late_s: float, lost_s: float) -> Health:
    """The health of an agent that has been silent for `silent_s` seconds."""
    if silent_s < late_s:
        return "healthy"
    return "late" if silent_s < lost_s else "unreachable"


async def record_first_heartbeat(deps: Deps, instance_id: UUID, status: AgentStatus) -> None:
    """Store the agent's status as its first heartbeat, once the control plane has reached the agent. From then on, silence counts."""
    seen = Heartbeat(
        boot_id=status.boot_id,
        uptime_seconds=status.uptime_seconds,
        active_connections=status.active_connections,
        versions=status.versions,
        skills_loaded=status.skills_loaded,
        config_version=status.config_version,
        error=status.error,
    )
    report = msgspec.json.encode(seen).decode()
    noted = {"lane": lane_of(instance_id), "id": instance_id, "boot_id": status.boot_id, "report": report}
    await run(deps.pool, _FIRST_HEARTBEAT, noted)
