"""`/v1/agent`: what the program on the VPS calls (docs/agent.md).

This layer only checks who is calling. The write side decides what a call means for the instance.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from dataclasses import dataclass, field
from typing import Annotated, Any, Final
from uuid import UUID, uuid4

import msgspec
import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events import commands as c
from events import errors as e
from events.bounded_cache import BoundedCache
from events.decide_agent import require_boot
from events.ids import lane_of
from events.master_keys import MasterKeys
from events.record import Outcome
from events.retries import with_retries
from events.sql import Statements
from events.state import Instance
from events.store import EventStore
from events.types import BootstrapReported
from hydracore.agent import messages as m
from hydracore.agent_client import AGENT_PORT
from hydracore.api import agent_schemas as s
from hydracore.api.agent_gate import CallingAgent, ReportingAgent
from hydracore.api.errors import Conflict, Unauthorized
from hydracore.api.operations import operation
from hydracore.api.runtime_document import RuntimeDocuments
from hydracore.api.validation import Header, Incoming
from hydracore.clock import NowMs
from hydracore.tokens import agent_key, control_token, hash_token, master_key_of_agent_key, parse_enrol_token

_STORE_HEARTBEAT = Statements("hydracore.api", "agents.sql")["store_heartbeat"]

#: The most agents whose warnings are remembered. Beyond that, an agent may be warned about again.
LOCKED_OUT_MAX: Final = 10_000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class AgentEndpoints:
    store: EventStore
    pool: AsyncConnectionPool
    documents: RuntimeDocuments
    master_keys: MasterKeys
    heartbeat_interval_s: float
    now_ms: NowMs
    #: By instance, the key in force for which a warning was logged.
    _locked_out: BoundedCache[UUID, UUID] = field(
        default_factory=lambda: BoundedCache(count_max=LOCKED_OUT_MAX, bytes_max=LOCKED_OUT_MAX), init=False
    )

    @operation("POST", "/v1/agent/enroll", "Enrol an agent", answer=m.Enrolled, errors=(401, 409, 410))
    async def enroll(self, incoming: Incoming, body: s.Enroll) -> m.Enrolled:
        """Binds the enrol token to the first agent that presents it."""
        token_hash, known = hash_token(body.token).hex(), set[str]()
        if parse_enrol_token(body.token) == (body.instance_id, body.attempt):
            known = _enrol_token_hashes(await self.store.load(body.instance_id))
        # Before anything else: only a caller with a token of the instance, even an old one, may learn that it exists or
        # is over.
        if token_hash not in known:
            raise e.TokenRefused(body.instance_id)
        command = c.EnrolAgent(
            at_ms=self.now_ms(),
            attempt=body.attempt,
            token_hash=token_hash,
            boot_id=body.boot_id,
            signing_key=body.public_keys.signing,
            vpn_key=body.public_keys.vpn,
        )
        outcome = await self._execute(body.instance_id, command, incoming)
        agent = outcome.state.agent
        if agent is None or (agent.signing_key, agent.vpn_key) != (body.public_keys.signing, body.public_keys.vpn):
            raise Conflict("The enrol token is bound to another agent")
        return m.Enrolled(instance_id=body.instance_id, attempt=body.attempt, boot_id=body.boot_id)

    @operation("POST", "/v1/agent/secrets", "Fetch the agent's secrets", answer=m.Secrets, errors=(401, 409, 410))
    async def issue_secrets(
        self,
        incoming: Incoming,
        body: s.AskSecrets,
        signature: Annotated[str, Header("X-Agent-Signature")] = "",
    ) -> m.Secrets:
        """Returns the same secrets until they are acknowledged, and never again after that."""
        state = await self.store.load(body.instance_id)
        _require_signature(_signing_keys(state, body.attempt), signature, incoming.raw_body)
        key_id = uuid4()
        key = agent_key(self.master_keys.present, body.instance_id, key_id)
        command = c.IssueAgentKey(
            at_ms=self.now_ms(),
            attempt=body.attempt,
            boot_id=body.boot_id,
            key_id=key_id,
            key_hash=hash_token(key).hex(),
        )
        try:
            outcome = await self._execute(body.instance_id, command, incoming)
        except e.KeyNotPending:
            self._warn_of_locked_out(state)
            raise
        return await self._secrets(outcome.state)

    @operation(
        "POST",
        "/v1/agent/secrets/ack",
        "Acknowledge the agent's secrets",
        answer=dict[str, Any],
        errors=(401, 409, 410),
    )
    async def acknowledge_secrets(
        self, who: ReportingAgent, incoming: Incoming, body: s.AcknowledgeSecrets
    ) -> dict[str, Any]:
        _require_key(who, body.key_id)
        command = c.AcknowledgeAgentKey(at_ms=self.now_ms(), boot_id=body.boot_id, key_id=who.key_id)
        await self._execute(who.instance_id, command, incoming)
        return {"key_id": who.key_id}

    @operation(
        "POST",
        "/v1/agent/callback",
        "Report the progress of a boot",
        answer=m.CallbackAccepted,
        errors=(401, 409, 410),
        body_bytes=s.CALLBACK_BODY_BYTES,
    )
    async def callback(self, who: CallingAgent, incoming: Incoming, body: s.Callback) -> m.CallbackAccepted:
        if body.key_id is not None:
            _require_key(who, body.key_id)
        command = c.ReportBootstrap(
            at_ms=self.now_ms(),
            boot_id=body.boot_id,
            seq=body.seq,
            reports=tuple(
                c.BootReport(report.stage, report.level, report.message) for report in (body, *body.following)
            ),
            key_id=body.key_id,
        )
        outcome = await self._execute(who.instance_id, command, incoming)
        is_new = any(isinstance(event, BootstrapReported) for event in outcome.events)
        return m.CallbackAccepted(seq=body.seq + len(body.following), duplicate=not is_new)

    @operation("POST", "/v1/agent/heartbeat", "Report that the agent lives", answer=m.HeartbeatReply, errors=(401, 410))
    async def heartbeat(self, who: CallingAgent, body: s.Heartbeat) -> m.HeartbeatReply:
        """Replaces the last heartbeat: this is telemetry and not history. Its time is that of the database's clock.

        Only the present boot may report: an earlier one is no sign of life of its successor, and must stop.
        """
        state = await self.store.load(who.instance_id)
        assert state is not None, "an agent's key is of an instance"
        require_boot(state, body.boot_id)
        report = msgspec.json.encode(body).decode()

        async def store_heartbeat(connection: AsyncConnection) -> None:
            parameters = (lane_of(who.instance_id), who.instance_id, body.boot_id, report)
            await connection.execute(_STORE_HEARTBEAT, parameters, prepare=True)

        await with_retries(self.pool, store_heartbeat)
        return m.HeartbeatReply(config_version=state.config.version, heartbeat_interval_s=self.heartbeat_interval_s)

    async def _execute(self, instance_id: UUID, command: c.AnyCommand, incoming: Incoming) -> Outcome:
        return await self.store.execute(instance_id, command, incoming.origin(f"agent:{instance_id}"))

    def _warn_of_locked_out(self, state: Instance | None) -> None:
        """Warn once per key about an agent that asks for secrets that it cannot have, and will go on asking.

        By the log, it has acknowledged them, because the log or the agent's disk was restored; or it has not, and the
        master key that they were derived from was dropped.
        """
        if state is None or state.agent is None or (key_id := state.agent.key_id) is None:
            return
        if self._locked_out.get(state.id) != key_id:
            self._locked_out.put(state.id, key_id, weight=1)
            _log.warning("agent_locked_out", instance_id=str(state.id), key_id=str(key_id))

    async def _secrets(self, state: Instance) -> m.Secrets:
        assert state.agent is not None, "a key is issued to an enrolled agent only"
        assert state.agent.key_id is not None
        assert state.vpn_ip is not None, "addresses are taken before a server is intended"
        # If a key was issued before, it is valid: derive it again from its id, with the master key that it was derived
        # from.
        key_id, key_hash = state.agent.key_id, state.agent.key_hash
        assert key_hash is not None, "a key is issued with its hash"
        master_key = master_key_of_agent_key(self.master_keys, state.id, key_id, key_hash=key_hash)
        if master_key is None:
            # Whatever another master key derives would be refused.
            self._warn_of_locked_out(state)
            raise Conflict("The agent key is of a master key that is no longer configured")
        return m.Secrets(
            key_id=str(key_id),
            agent_key=agent_key(master_key, state.id, key_id),
            control_token=control_token(master_key, state.id, key_id),
            listen=m.Listen(host=state.vpn_ip, port=AGENT_PORT),
            heartbeat_interval_s=self.heartbeat_interval_s,
            config_version=state.config.version,
            runtime=await self.documents.build(state),
        )


def _require_key(who: CallingAgent, key_id: UUID) -> None:
    """Raises `Conflict` unless the agent acknowledges the key that it presents."""
    if key_id != who.key_id:
        raise Conflict("Another key is in force")


def _enrol_token_hashes(state: Instance | None) -> set[str]:
    """The hashes of all enrol tokens that were created for this instance."""
    if state is None:
        return set()
    tokens = {past.enrol_token_hash for past in state.past_attempts}
    if state.attempt is not None and state.attempt.enrol_token_hash is not None:
        tokens.add(state.attempt.enrol_token_hash)
    return tokens


def _signing_keys(state: Instance | None, attempt: int) -> list[str]:
    """The signing key of this attempt's agent, or those of all earlier attempts' agents, which have to stop."""
    if state is None:
        return []
    if state.attempt is not None and attempt == state.attempt.number:
        return [] if state.agent is None else [state.agent.signing_key]
    return [past.signing_key for past in state.past_attempts if past.signing_key is not None]


def _require_signature(signing_keys: list[str], signature: str, body: bytes) -> None:
    """Raises `Unauthorized` unless `signature` is one of exactly this body, by one of these keys."""
    for key in signing_keys:
        try:
            public_key = Ed25519PublicKey.from_public_bytes(b64decode(key))
            public_key.verify(b64decode(signature, validate=True), body)
        except (InvalidSignature, Base64Error, ValueError):
            continue
        return
    raise Unauthorized("The signature is wrong")
