"""`/v1/instances/admin/{id}/rotate-key`: revoke an agent's key at once. The agent fetches another by itself."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from events.commands import RotateAgentKey
from events.state import Instance
from hydracore.api import use_schemas as s
from hydracore.api.access import require_staff
from hydracore.api.changes import Changes, RequestContext
from hydracore.api.errors import Conflict
from hydracore.api.operations import operation
from hydracore.api.validation import Incoming
from hydracore.auth import Principal
from hydracore.clock import NowMs


@dataclass(frozen=True, kw_only=True)
class KeyRotation:
    changes: Changes
    now_ms: NowMs

    @operation(
        "POST",
        "/v1/instances/admin/{instance_id}/rotate-key",
        "Rotate agent key",
        answer=s.RotateKeyResponse,
        errors=(403, 404, 409),
    )
    async def rotate_key(self, who: Principal, incoming: Incoming, instance_id: UUID) -> s.RotateKeyResponse:
        require_staff(who)

        async def command(_: Instance) -> RotateAgentKey:
            return RotateAgentKey(at_ms=self.now_ms())

        outcome = await self.changes.change(RequestContext(who, incoming, instance_id), command)
        if not outcome.events:
            raise Conflict("There is no active key: none was issued yet, or it was just revoked")
        return s.RotateKeyResponse(instance_id=instance_id, status="rotated")
