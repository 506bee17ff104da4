"""Random lives: what comes next by the book, mixed with strays from a small world in which things collide.

A move is either `FORWARD` (whatever the saga or the agent would do next) or a stray: a command that may fit, be late,
doubled, of another attempt, another boot or another key, or make no sense at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple
from uuid import UUID

from hypothesis import strategies as st

from events import commands as c
from events import saga
from events.ids import instance_id_for
from events.state import BOOTSTRAP_STAGES, TEARDOWN_STEPS, Instance
from events.types import Sealed
from tests import lives
from tests.lives import BOOT, KEY, NOW_MS, OTHER_SIGNING_KEY, SECOND_BOOT, SECOND_KEY, SIGNING_KEY, THIRD_BOOT

FORWARD: Literal["forward"] = "forward"

_BOOTS, _KEYS = (BOOT, SECOND_BOOT, THIRD_BOOT), (KEY, SECOND_KEY)
_SECRETS = BOOTSTRAP_STAGES.index("secrets")


class Who(NamedTuple):
    """One customer's instance in a world of its own: values that must be unique are, unless a stray says otherwise."""

    tenant_id: str
    customer_id: str

    @property
    def id(self) -> UUID:
        return instance_id_for(tenant_id=self.tenant_id, customer_id=self.customer_id, idempotency_key="first")

    def request(self, at_ms: int = NOW_MS) -> c.RequestInstance:
        return lives.request(
            at_ms=at_ms, tenant_id=self.tenant_id, customer_id=self.customer_id, customer_email=Sealed("v1.sealed")
        )

    def plan(self, attempt: int, *, at_ms: int = NOW_MS, vpn_ip: str | None = None) -> c.PlanServer:
        return lives.plan(
            attempt,
            at_ms=at_ms,
            hostname=f"hc-{self.id}",
            vpn_ip=f"{self.tenant_id}/{vpn_ip or self.customer_id}",
            location=f"fsn{attempt}",
        )

    def created(self, attempt: int, *, at_ms: int = NOW_MS, server_id: str | None = None) -> c.RecordServerCreated:
        return lives.created(
            attempt, at_ms=at_ms, server_id=f"{self.tenant_id}/{server_id or f'{self.customer_id}-{attempt}'}"
        )


Move = Literal["forward"] | Callable[[Who, Instance | None], c.AnyCommand]


def command_of(move: Move, who: Who, state: Instance | None) -> c.AnyCommand:
    """The command that a move stands for, at what is known of the instance."""
    return _forward(who, state) if move == FORWARD else move(who, state)


def _forward(who: Who, state: Instance | None) -> c.AnyCommand:
    if state is None:
        return who.request()
    match saga.next_step(state):
        case saga.PlanAttempt(number=number):
            return who.plan(number)
        case saga.EnsureServer(attempt=attempt):
            return who.created(attempt.number)
        case saga.AwaitAgent():
            return _agent_forward(state)
        case saga.VerifyAgent(attempt=attempt):
            return lives.mark_ready(attempt.number)
        case saga.DiscardServer(attempt=attempt):
            return lives.discarded(attempt.number)
        case saga.AbandonProvisioning(code=code):
            return lives.gave_up(code)
        case saga.TearDown(step=step):
            return lives.teardown(step)
        case saga.FinishDeletion():
            return lives.finish()
        case saga.Rest():
            return lives.delete()


def _agent_forward(state: Instance) -> c.AnyCommand:
    """What the agent sends next: it enrols, fetches its key before it speaks of it, and reports stage by stage."""
    assert state.attempt is not None
    number, agent = state.attempt.number, state.agent
    if agent is None:
        return lives.enrol(attempt=number)
    done = -1 if agent.bootstrap_stage is None else BOOTSTRAP_STAGES.index(agent.bootstrap_stage)
    if done + 1 >= _SECRETS and agent.key_id is None:
        return lives.issue(attempt=number, boot_id=agent.boot_id)
    if done + 1 >= _SECRETS and not agent.key_acknowledged:
        return lives.acknowledge(agent.key_id or KEY)
    stage = BOOTSTRAP_STAGES[min(done + 1, len(BOOTSTRAP_STAGES) - 1)]
    return lives.report(agent.bootstrap_seq + 1, stage, agent.boot_id)


_attempts = st.integers(1, 5)
_times = st.sampled_from([NOW_MS - 60_000, NOW_MS, NOW_MS + 1_000, NOW_MS + 2 * lives.ENROL_TTL_MS])
_codes = st.sampled_from(["locked", "resource_unavailable", "boot_timeout"])
_steps = st.sampled_from([*TEARDOWN_STEPS, "servers_salvaged"])

#: Commands that do not depend on who gets them.
_PLAIN: st.SearchStrategy[c.AnyCommand] = st.one_of(
    st.builds(lives.observed, _attempts),
    st.builds(lives.failed, _attempts, code=_codes, retryable=st.booleans(), nothing_made=st.booleans()),
    st.builds(lives.discarded, _attempts),
    st.builds(lives.gave_up, _codes),
    st.builds(lives.mark_ready, _attempts),
    st.builds(lives.health, st.sampled_from(["healthy", "late", "unreachable"])),
    st.builds(
        lambda boot_id, attempt, at_ms, key: lives.enrol(boot_id, attempt=attempt, at_ms=at_ms, signing_key=key),
        st.sampled_from(_BOOTS),
        _attempts,
        _times,
        st.sampled_from([SIGNING_KEY, OTHER_SIGNING_KEY]),
    ),
    st.builds(
        lambda key_id, attempt, boot_id: lives.issue(key_id, attempt=attempt, boot_id=boot_id),
        st.sampled_from(_KEYS),
        _attempts,
        st.sampled_from(_BOOTS),
    ),
    st.builds(lives.acknowledge, st.sampled_from(_KEYS)),
    st.builds(
        lives.report,
        st.integers(0, 8),
        st.sampled_from([*BOOTSTRAP_STAGES, "levitating"]),
        st.sampled_from(_BOOTS),
    ),
    st.just(lives.rotate_key()),
    st.builds(lives.usage, st.integers(1, 4), st.sampled_from([UUID(int=1), UUID(int=2)])),
    st.builds(
        lambda name, recipe_id: lives.configure(agent_name=name, recipe_id=recipe_id),
        st.sampled_from([None, "Ada's"]),
        st.sampled_from([None, "r"]),
    ),
    st.builds(c.EraseCustomer, at_ms=_times),
    st.builds(c.ChangeConsent, at_ms=_times, granted=st.booleans()),
    st.builds(c.PatchPlatformConfig, at_ms=_times, skills=st.sampled_from([(), ("calculator", {"id": "web"})])),
    st.builds(c.ChangeModelPolicy, at_ms=_times, temperature=st.sampled_from([None, 0.5, 1.0])),
    st.just(lives.delete()),
    st.builds(lives.teardown, _steps),
    st.builds(lives.block, _steps, _codes),
    st.just(lives.finish()),
)


def _repeated(command: c.AnyCommand) -> Move:
    return lambda _who, _state: command


strays: st.SearchStrategy[Move] = st.one_of(
    _PLAIN.map(_repeated),
    st.builds(lambda at_ms: lambda who, _: who.request(at_ms), _times),
    st.builds(
        lambda attempt, at_ms, ip: lambda who, _: who.plan(attempt, at_ms=at_ms, vpn_ip=ip),
        _attempts,
        _times,
        st.sampled_from([None, "shared"]),
    ),
    st.builds(
        lambda attempt, at_ms, one: lambda who, _: who.created(attempt, at_ms=at_ms, server_id=one),
        _attempts,
        _times,
        st.sampled_from([None, "shared"]),
    ),
    st.builds(lambda attempt: lambda who, _: lives.vanished(attempt, who.created(attempt).server_id), _attempts),
)

#: Mostly by the book, or no life would get far. (`one_of` would flatten the strays and drown the book in them.)
moves: st.SearchStrategy[Move] = st.integers(0, 2).flatmap(lambda dice: strays if dice == 0 else st.just(FORWARD))
