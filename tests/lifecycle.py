"""The life of an instance as commands, and `InMemoryInstance`, which runs them in memory: the basis of tests of the write side.

`InMemoryInstance` decides and folds without a database. Each tuple of commands leads to one point of the lifecycle and extends the
tuple before it: `InMemoryInstance.after(*RUNNING)` is an instance that has come to `running`.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Self
from uuid import UUID

from events import commands as c
from events import types as e
from events.decide import decide
from events.evolve import evolve
from events.ids import instance_id_for
from events.state import TEARDOWN_STEPS, Instance
from events.types import BootstrapStage, Health, Sealed, TeardownStep, UsageEntry

NOW_MS = 1_790_000_000_000
ENROL_TTL_MS = 3_600_000

BOOT, SECOND_BOOT, THIRD_BOOT = (UUID(int=number) for number in (0xB1, 0xB2, 0xB3))
KEY, SECOND_KEY, THIRD_KEY = (UUID(int=number) for number in (0xC1, 0xC2, 0xC3))
LEDGER = UUID(int=0xD1)
SIGNING_KEY, OTHER_SIGNING_KEY = "c2lnbmluZw==", "b3RoZXI="


def instance_id(customer_id: str = "ada") -> UUID:
    return instance_id_for(tenant_id="acme", customer_id=customer_id, idempotency_key="first")


def request(**changes: Any) -> c.RequestInstance:
    given = {
        "at_ms": NOW_MS,
        "tenant_id": "acme",
        "customer_id": "ada",
        "idempotency_key": "first",
        "region_id": "local",
        "tier_id": "starter",
        "preset_id": "personal_assistant",
        "runtime_type": "expressclaw",
        "workload_type": "agent",
        "capabilities": {"chat": True, "browser": False},
    }
    return c.RequestInstance(**given | changes)


def token_hash(attempt: int = 1) -> str:
    return sha256(f"enrol token of attempt {attempt}".encode()).hexdigest()


def plan(attempt: int = 1, **changes: Any) -> c.PlanServer:
    given = {
        "at_ms": NOW_MS,
        "attempt": attempt,
        "provider": "cloudsim",
        "server_type": "cx22",
        "location": "fsn1",
        "image": "debian-13",
        "hostname": "hc-ada",
        "vpn_ip": "10.64.0.16",
        "server_name": "hc-server",
        "enrol_nonce": f"nonce-{attempt}",
        "enrol_token_hash": token_hash(attempt),
        "enrol_expires_ms": NOW_MS + ENROL_TTL_MS,
        "deadline_ms": NOW_MS + 900_000,
    }
    return c.PlanServer(**given | changes)


def created(attempt: int = 1, **changes: Any) -> c.RecordServerCreated:
    given = {
        "at_ms": NOW_MS,
        "attempt": attempt,
        "server_id": f"4{attempt}",
        "ipv4": "127.32.0.1",
        "action_id": f"7{attempt}",
    }
    return c.RecordServerCreated(**given | changes)


def observed(attempt: int = 1) -> c.RecordServerRunning:
    return c.RecordServerRunning(at_ms=NOW_MS, attempt=attempt)


def failed(attempt: int = 1, **changes: Any) -> c.FailAttempt:
    return c.FailAttempt(
        **{"at_ms": NOW_MS, "attempt": attempt, "code": "resource_unavailable", "retryable": True} | changes
    )


def discarded(attempt: int = 1) -> c.RecordServerDiscarded:
    return c.RecordServerDiscarded(at_ms=NOW_MS, attempt=attempt)


def gave_up(code: str = "resource_unavailable") -> c.GiveUp:
    return c.GiveUp(at_ms=NOW_MS, code=code)


def enrol(boot_id: UUID = BOOT, **changes: Any) -> c.EnrolAgent:
    given = {
        "at_ms": NOW_MS,
        "attempt": 1,
        "token_hash": token_hash(changes.get("attempt", 1)),
        "boot_id": boot_id,
        "signing_key": SIGNING_KEY,
        "vpn_key": "dnBu",
    }
    return c.EnrolAgent(**given | changes)


def issue(key_id: UUID = KEY, **changes: Any) -> c.IssueAgentKey:
    given = {"at_ms": NOW_MS, "attempt": 1, "boot_id": BOOT, "key_id": key_id, "key_hash": key_id.hex * 2}
    return c.IssueAgentKey(**given | changes)


def acknowledge(key_id: UUID = KEY, boot_id: UUID = BOOT) -> c.AcknowledgeAgentKey:
    return c.AcknowledgeAgentKey(at_ms=NOW_MS, boot_id=boot_id, key_id=key_id)


def report(
    seq: int, stage: BootstrapStage, boot_id: UUID = BOOT, message: str = "so far so good", key_id: UUID | None = None
) -> c.ReportBootstrap:
    told = (c.BootReport(stage, "info", message),)
    return c.ReportBootstrap(at_ms=NOW_MS, boot_id=boot_id, seq=seq, reports=told, key_id=key_id)


def mark_ready(attempt: int = 1) -> c.MarkReady:
    return c.MarkReady(at_ms=NOW_MS, attempt=attempt)


def health(value: Health) -> c.ChangeHealth:
    return c.ChangeHealth(at_ms=NOW_MS, health=value)


def vanished(attempt: int = 1, server_id: str = "41") -> c.ReportServerVanished:
    return c.ReportServerVanished(at_ms=NOW_MS, attempt=attempt, server_id=server_id)


def usage(seq: int, ledger_id: UUID = LEDGER, cost_usd: str = "0.001") -> c.RecordUsage:
    entry = UsageEntry(
        at_ms=NOW_MS, model="scripted-1", prompt_tokens=100, completion_tokens=20, cost_usd=cost_usd, channel="api"
    )
    return c.RecordUsage(at_ms=NOW_MS, ledger_id=ledger_id, seq=seq, entries=(entry,))


def configure(**changes: Any) -> c.ChangeConfig:
    return c.ChangeConfig(at_ms=NOW_MS, **changes)


def rotate_key() -> c.RotateAgentKey:
    return c.RotateAgentKey(at_ms=NOW_MS)


def delete(reason: str = "requested by customer") -> c.RequestDeletion:
    return c.RequestDeletion(at_ms=NOW_MS, reason=reason)


def teardown(step: TeardownStep) -> c.RecordTeardownStep:
    return c.RecordTeardownStep(at_ms=NOW_MS, step=step)


def block(step: TeardownStep, code: str = "locked") -> c.BlockTeardown:
    return c.BlockTeardown(at_ms=NOW_MS, step=step, code=code)


def finish() -> c.CompleteDeletion:
    return c.CompleteDeletion(at_ms=NOW_MS)


PENDING = (request(customer_email=Sealed("v1.sealed")),)
INTENDED = (*PENDING, plan())
CREATED = (*INTENDED, created())
OBSERVED = (*CREATED, observed())
ENROLLED = (*OBSERVED, enrol())
KEYED = (*ENROLLED, report(1, "booted"), report(2, "enrolled"), issue(), acknowledge())
HEALTHY = (
    *KEYED,
    *(report(seq, stage) for seq, stage in enumerate(("secrets", "configured", "runtime_started", "healthy"), start=3)),
)
RUNNING = (*HEALTHY, mark_ready())
LOST = (*RUNNING, vanished())
ATTEMPT_FAILED = (*CREATED, failed())
ATTEMPT_DISCARDED = (*ATTEMPT_FAILED, discarded())
FAILED = (*CREATED, failed(retryable=False, code="unauthorized"), discarded(), gave_up("unauthorized"))
DELETING = (*RUNNING, delete())
TORN_DOWN = (*DELETING, *(teardown(step) for step in TEARDOWN_STEPS))
DELETED = (*TORN_DOWN, finish())

#: Commands that lead to each status.
COMMANDS_TO_STATUS: dict[str, tuple[c.AnyCommand, ...]] = {
    "pending": PENDING,
    "provisioning": INTENDED,
    "running": RUNNING,
    "failed": FAILED,
    "error": LOST,
    "deleting": DELETING,
    "deleted": DELETED,
}


class InMemoryInstance:
    """One instance that lives in memory: commands are decided and their events folded, and nothing is written."""

    def __init__(self, stream_id: UUID | None = None) -> None:
        self.id = instance_id() if stream_id is None else stream_id
        self.current: Instance | None = None
        self.events: list[e.AnyEvent] = []

    @classmethod
    def after(cls, *commands: c.AnyCommand) -> Self:
        """An instance after these commands, each of which must cause an event."""
        life = cls()
        for command in commands:
            assert life.execute(command), command
        return life

    @property
    def state(self) -> Instance:
        assert self.current is not None, "no command has created this instance"
        return self.current

    def execute(self, command: c.AnyCommand) -> tuple[e.AnyEvent, ...]:
        """The events that `command` causes here, folded in. Raises what `decide` raises."""
        events = decide(self.current, command, stream_id=self.id)
        for event in events:
            self.current = evolve(self.current, event, stream_id=self.id)
        self.events += events
        return events
