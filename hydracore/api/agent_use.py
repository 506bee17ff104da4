"""`/v1/agent/config` and `/v1/agent/usage`: a running agent fetches its configuration and reports its usage."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final, TypeVar
from uuid import UUID

import structlog

from events.commands import RecordUsage
from events.decide_agent import require_boot
from events.keys import Keyring
from events.store import EventStore
from events.types import UsageEntry
from hydracore.agent import messages as m
from hydracore.api import agent_schemas as s
from hydracore.api.agent_gate import CallingAgent, ReportingAgent
from hydracore.api.operations import operation
from hydracore.api.runtime_document import RuntimeDocuments
from hydracore.api.validation import Incoming
from hydracore.clock import NowMs
from hydracore.money import decimal_text

#: The precision of dollars in the read tables.
COST_STEP: Final = Decimal("1e-12")
#: The most US dollars of one call. Anything more cannot be a price.
COST_MAX: Final = Decimal(1_000_000)

#: Hex digits of an end user's digest that are kept: enough to tell people apart, but not to identify them.
END_USER_DIGITS: Final = 32

_log = structlog.get_logger(__name__)

N = TypeVar("N", int, Decimal)


@dataclass(frozen=True, kw_only=True)
class AgentUse:
    store: EventStore
    documents: RuntimeDocuments
    keyring: Keyring
    now_ms: NowMs

    @operation("POST", "/v1/agent/config", "Fetch the newest configuration", answer=m.NewestConfig, errors=(401, 410))
    async def fetch_config(self, who: CallingAgent, body: s.AskConfig) -> m.NewestConfig:
        state = await self.store.load(who.instance_id)
        assert state is not None, "an agent's key is of an instance"
        require_boot(state, body.boot_id)
        return m.NewestConfig(config_version=state.config.version, runtime=await self.documents.build(state))

    @operation(
        "POST",
        "/v1/agent/usage",
        "Report what was used",
        answer=m.UsageAccepted,
        errors=(401, 409, 410),
        body_bytes=s.USAGE_BODY_BYTES,
    )
    async def record_usage(self, who: ReportingAgent, incoming: Incoming, body: s.UsageBatch) -> m.UsageAccepted:
        """Records each batch of a ledger once, in order. A repeat is answered, but changes nothing.

        Batches of any boot are accepted, because all usage is charged: a boot that was replaced may still end its chats,
        also while the instance is being deleted.
        """
        now_ms = self.now_ms()
        command = RecordUsage(
            at_ms=now_ms,
            ledger_id=body.ledger_id,
            seq=body.seq,
            entries=tuple(self._entry(each, instance_id=who.instance_id, now_ms=now_ms) for each in body.entries),
        )
        outcome = await self.store.execute(who.instance_id, command, incoming.origin(who.actor))
        return m.UsageAccepted(seq=body.seq, duplicate=not outcome.events)

    def _entry(self, entry: s.UsageEntry, *, instance_id: UUID, now_ms: int) -> UsageEntry:
        cost = _clamped(entry.cost_usd, COST_MAX, instance_id)
        return UsageEntry(
            # A VPS with a fast clock must not book its spending on a later day, which no budget counts yet.
            at_ms=min(max(entry.at_ms, 0), now_ms),
            model=entry.model,
            prompt_tokens=_clamped(entry.prompt_tokens, m.TOKENS_MAX, instance_id),
            completion_tokens=_clamped(entry.completion_tokens, m.TOKENS_MAX, instance_id),
            cost_usd=decimal_text(cost.quantize(COST_STEP)),
            channel=entry.channel,
            end_user=None if entry.end_user is None else self._digest(instance_id, entry.end_user),
        )

    def _digest(self, instance_id: UUID, end_user: str) -> str:
        """A digest per instance: the same person at two instances cannot be recognized."""
        return self.keyring.fingerprint(f"end user of {instance_id}: {end_user}".encode()).hex()[:END_USER_DIGITS]


def _clamped(figure: N, limit: N, instance_id: UUID) -> N:
    """`figure`, clamped to 0 and `limit`, so that sums of figures fit the read tables."""
    clamped = min(max(figure, type(figure)(0)), limit)
    if clamped != figure:
        _log.warning("usage_out_of_reason", instance_id=str(instance_id), figure=str(figure)[:40], kept=str(clamped))
    return clamped
