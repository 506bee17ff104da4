"""How an agent is doing: its answer now, otherwise its last report, otherwise what is known of its provisioning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from events.failures import describe
from events.lifecycle import ERROR, RUNNING
from events.master_keys import MasterKeys
from events.state import Instance
from events.store import EventStore
from hydracore.agent.messages import AgentStatus, Heartbeat, Ignored, ReportedError
from hydracore.agent_client import AgentClient, AgentClientError
from hydracore.api import schemas as s
from hydracore.api.agent_link import address_of
from projections.queries import ReportRow

#: The most seconds that an agent may take to answer. After that, its last heartbeat is shown.
ASK_TIMEOUT_S: Final = 1.5

#: Errors of an agent that another configuration may fix.
_CONFIGURATION_ERRORS: Final = frozenset({"config_invalid", "integration_failed", "memory_failed", "telegram_failed"})

_HEARTBEAT: Final = msgspec.json.Decoder(Heartbeat)


@dataclass(frozen=True, kw_only=True)
class RuntimeReader:
    """`agent_client`: a client with the timeout `ASK_TIMEOUT_S`. `heartbeat_interval_s`: how often agents report."""

    store: EventStore
    agent_client: AgentClient
    master_keys: MasterKeys
    heartbeat_interval_s: float

    async def read(self, report: ReportRow, *, lines: list[s.LogLine]) -> s.RuntimeStatus:
        """All that is known. Failures of the agent are never raised."""
        state = await self.store.load(report.id)
        assert state is not None, "what has a row has a stream"
        heartbeat: Heartbeat | None = _HEARTBEAT.decode(report.heartbeat) if report.heartbeat else None
        status = await self._status_of(state)
        latest = status if status is not None else heartbeat
        error = status.error if status is not None else _current_error(heartbeat, config_version=state.config.version)
        if report.error_code is not None:
            error_code, error_message = report.error_code, describe(report.error_code)
        else:
            error_code, error_message = (error.code, error.message) if error is not None else (None, None)
        skills: list[Any] = list(latest.skills_loaded) if latest is not None else []
        return s.RuntimeStatus(
            active_connections=latest.active_connections if latest is not None else None,
            bootstrap_seq=report.bootstrap_seq,
            bootstrap_stage=report.bootstrap_stage,
            error_code=error_code,
            error_message=error_message,
            health_failures=self._missed_heartbeats(report),
            health_status=report.health_status,
            instance_id=report.id,
            last_heartbeat=report.heartbeat_at,
            node_version=latest.versions.node if latest is not None else None,
            openclaw_version=latest.versions.openclaw if latest is not None else None,
            provision_logs=lines,
            provisioning_stage=report.provisioning_stage,
            skills_loaded=skills,
            status=report.status,
            uptime_seconds=latest.uptime_seconds if latest is not None else None,
            config_version=state.config.version,
            config_version_running=latest.config_version if latest is not None else None,
            agent_version=latest.versions.agent if latest is not None else None,
            connections=status.connections if status is not None else {},
            workflows_loaded=list(status.workflows_loaded) if status is not None else [],
            config_ignored=_shown(status.ignored) if status is not None else [],
        )

    def _missed_heartbeats(self, report: ReportRow) -> int:
        """How many heartbeats in a row are missing, by the database's clock."""
        # An agent in `error` should report too. One that is being deleted need not.
        if report.status not in {RUNNING, ERROR} or report.heartbeat_age_s is None:
            return 0
        # A heartbeat may always take one interval.
        return max(0, int(report.heartbeat_age_s / self.heartbeat_interval_s) - 1)

    async def _status_of(self, state: Instance) -> AgentStatus | None:
        address = address_of(state, master_keys=self.master_keys)
        if address is None:
            return None
        try:
            return await self.agent_client.status(address)
        except AgentClientError:
            # It shows in `health_failures`, and as a change of health if it lasts.
            return None


def _current_error(heartbeat: Heartbeat | None, *, config_version: int) -> ReportedError | None:
    """The error of the last heartbeat; None if a newer configuration may have fixed it."""
    if heartbeat is None or heartbeat.error is None:
        return None
    is_outdated = heartbeat.config_version is not None and heartbeat.config_version < config_version
    return None if is_outdated and heartbeat.error.code in _CONFIGURATION_ERRORS else heartbeat.error


def _shown(ignored: tuple[Ignored, ...]) -> list[s.IgnoredPart]:
    return [s.IgnoredPart(path=each.path, reason=each.reason) for each in ignored]
