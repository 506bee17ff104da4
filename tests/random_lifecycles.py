"""Random lifecycles of instances: regular next steps, mixed with stray commands whose few possible values often collide.

A move is either `FORWARD` (what the saga or the agent would do next) or a stray: a command that may be valid, late or
repeated, belong to another attempt, boot or key, or make no sense at all.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product, starmap
from typing import Final, Literal, NamedTuple
from uuid import UUID

from hypothesis import strategies as st

from events import commands as c
from events import saga
from events.ids import instance_id_for
from events.state import BOOTSTRAP_STAGES, TEARDOWN_STEPS, Instance
from events.types import Sealed
from tests import lifecycle
from tests.lifecycle import BOOT, KEY, NOW_MS, OTHER_SIGNING_KEY, SECOND_BOOT, SECOND_KEY, THIRD_BOOT

FORWARD: Final = "forward"

_BOOTS, _KEYS = (BOOT, SECOND_BOOT, THIRD_BOOT), (KEY, SECOND_KEY)
_SECRETS = BOOTSTRAP_STAGES.index("secrets")


#: In the format of `events.keys`, under a key that does not exist.
SEALED = Sealed("v1." + "QUJD" * 12)


class InstanceIdentity(NamedTuple):
    """One customer's instance, and commands for it: values that must be unique are, unless a stray command says otherwise."""

    tenant_id: str
    customer_id: str

    @property
    def id(self) -> UUID:
        return instance_id_for(tenant_id=self.tenant_id, customer_id=self.customer_id, idempotency_key="first")

    def request(self, at_ms: int = NOW_MS) -> c.RequestInstance:
        return lifecycle.request(
            at_ms=at_ms, tenant_id=self.tenant_id, customer_id=self.customer_id, customer_email=SEALED
        )

    def plan(self, attempt: int, *, at_ms: int = NOW_MS, vpn_ip: str | None = None) -> c.PlanServer:
        return lifecycle.plan(
            attempt,
            at_ms=at_ms,
            hostname=f"hc-{self.id}",
            vpn_ip=f"{self.tenant_id}/{vpn_ip or self.customer_id}",
            location=f"fsn{attempt}",
        )

    def created(self, attempt: int, *, at_ms: int = NOW_MS, server_id: str | None = None) -> c.RecordServerCreated:
        return lifecycle.created(
            attempt, at_ms=at_ms, server_id=f"{self.tenant_id}/{server_id or f'{self.customer_id}-{attempt}'}"
        )


Move = Literal["forward"] | Callable[[InstanceIdentity, Instance | None], c.AnyCommand]


def command_of(move: Move, identity: InstanceIdentity, state: Instance | None) -> c.AnyCommand:
    """The command that a move stands for, at what is known of the instance."""
    return _forward(identity, state) if move == FORWARD else move(identity, state)


def _forward(identity: InstanceIdentity, state: Instance | None) -> c.AnyCommand:
    if state is None:
        return identity.request()
    match saga.next_step(state):
        case saga.PlanAttempt(number=number):
            return identity.plan(number)
        case saga.EnsureServer(attempt=attempt):
            return identity.created(attempt.number)
        case saga.AwaitAgent():
            return _agent_forward(state)
        case saga.VerifyAgent(attempt=attempt):
            return lifecycle.mark_ready(attempt.number)
        case saga.DiscardServer(attempt=attempt):
            return lifecycle.discarded(attempt.number)
        case saga.AbandonProvisioning(code=code):
            return lifecycle.gave_up(code)
        case saga.TearDown(step=step):
            return lifecycle.teardown(step)
        case saga.FinishDeletion():
            return lifecycle.finish()
        case saga.Idle():
            return lifecycle.delete()


def _agent_forward(state: Instance) -> c.AnyCommand:
    """What the agent sends next: it enrols, fetches its key before it speaks of it, and reports stage by stage."""
    assert state.attempt is not None
    number, agent = state.attempt.number, state.agent
    if agent is None:
        return lifecycle.enrol(attempt=number)
    done = -1 if agent.bootstrap_stage is None else BOOTSTRAP_STAGES.index(agent.bootstrap_stage)
    if done + 1 >= _SECRETS and agent.key_id is None:
        return lifecycle.issue(attempt=number, boot_id=agent.boot_id)
    if done + 1 >= _SECRETS and not agent.key_acknowledged:
        return lifecycle.acknowledge(agent.key_id or KEY, agent.boot_id)
    stage = BOOTSTRAP_STAGES[min(done + 1, len(BOOTSTRAP_STAGES) - 1)]
    return lifecycle.report(agent.bootstrap_seq + 1, stage, agent.boot_id)


ERASE = c.EraseCustomer(at_ms=NOW_MS)

_ATTEMPTS = (1, 2, 3, 5)
_LATE_MS = NOW_MS + 2 * lifecycle.ENROL_TTL_MS
_CODES = ("locked", "boot_timeout")

#: Commands that do not depend on who gets them: a small world, so that they meet what is there, or just miss it.
_PLAIN: tuple[c.AnyCommand, ...] = (
    *map(lifecycle.observed, _ATTEMPTS),
    *(lifecycle.failed(attempt, retryable=retryable) for attempt, retryable in product(_ATTEMPTS, (True, False))),
    lifecycle.failed(1, nothing_made=True),
    *map(lifecycle.discarded, _ATTEMPTS),
    *map(lifecycle.gave_up, _CODES),
    *map(lifecycle.mark_ready, _ATTEMPTS),
    *map(lifecycle.health, ("healthy", "late", "unreachable")),
    *(lifecycle.enrol(boot_id, attempt=attempt) for boot_id, attempt in product(_BOOTS, (1, 2))),
    *(lifecycle.enrol(boot_id, signing_key=OTHER_SIGNING_KEY) for boot_id in _BOOTS),
    *(lifecycle.enrol(boot_id, at_ms=_LATE_MS) for boot_id in _BOOTS),
    *(
        lifecycle.issue(key_id, attempt=attempt, boot_id=boot)
        for key_id, attempt, boot in product(_KEYS, (1, 2), _BOOTS)
    ),
    *map(lifecycle.acknowledge, _KEYS),
    *(
        lifecycle.report(seq, stage, boot)
        for seq, stage, boot in product((0, 1, 2, 7), ("booted", "healthy"), _BOOTS[:2])
    ),
    lifecycle.rotate_key(),
    *(lifecycle.usage(seq, UUID(int=ledger)) for seq, ledger in product((1, 2, 3), (1, 2))),
    *(lifecycle.configure(agent_name=name, recipe_id=recipe) for name, recipe in product((None, "Ada's"), (None, "r"))),
    *(c.ChangeConsent(at_ms=NOW_MS - 60_000, granted=granted) for granted in (True, False)),
    *(c.PatchPlatformConfig(at_ms=NOW_MS, skills=skills) for skills in ((), ("calculator", {"id": "web"}))),
    c.PatchPlatformConfig(
        at_ms=NOW_MS, advanced=SEALED, channels=SEALED, integrations=({"id": "mail", "token": SEALED},)
    ),
    *(lifecycle.configure(system_prompt=sealed, telegram_bot_token=SEALED) for sealed in (None, SEALED)),
    *(c.ChangeModelPolicy(at_ms=_LATE_MS, temperature=temperature) for temperature in (None, 0.5)),
    c.RecordConversationsAccess(at_ms=NOW_MS),
    c.RequestUpdates(at_ms=NOW_MS, config_version=1, restart=True, forced=True),
    c.RecordUpdatesApplied(at_ms=NOW_MS, config_version=1, restarted=True, forced=True),
    c.RecordUpdatesFailed(at_ms=NOW_MS, config_version=1, code="agent_timeout"),
    ERASE,
    lifecycle.delete(),
    *map(lifecycle.teardown, TEARDOWN_STEPS),
    *(lifecycle.block(step, code) for step, code in product(TEARDOWN_STEPS[:3], _CODES)),
    lifecycle.finish(),
)


def _same(command: c.AnyCommand) -> Move:
    return lambda _who, _state: command


def _plan(attempt: int, vpn_ip: str | None) -> Move:
    return lambda identity, _state: identity.plan(attempt, vpn_ip=vpn_ip)


def _created(attempt: int, server_id: str | None) -> Move:
    return lambda identity, _state: identity.created(attempt, server_id=server_id)


def _vanished(attempt: int) -> Move:
    return lambda identity, _state: lifecycle.vanished(attempt, identity.created(attempt).server_id)


STRAY_COMMANDS: tuple[Move, ...] = (
    *map(_same, _PLAIN),
    lambda identity, _state: identity.request(_LATE_MS),
    *starmap(_plan, product(_ATTEMPTS, (None, "shared"))),
    *starmap(_created, product(_ATTEMPTS, (None, "shared"))),
    *map(_vanished, _ATTEMPTS),
)

#: The customer's key is destroyed, whatever else has happened.
erasure: Move = _same(ERASE)

#: Two thirds by the book, or no life would get far.
_forwards: st.SearchStrategy[Move] = st.just(FORWARD)
moves: st.SearchStrategy[Move] = st.one_of(_forwards, _forwards, st.sampled_from(STRAY_COMMANDS))
