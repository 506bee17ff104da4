"""Every operation, requested by callers of every kind: the right status, and no trace of what was refused.

A row says which status an operation answers to each caller. An operation without a row fails.
"""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio

from tests.api_server import every_operation
from tests.callers import (
    ALL_CALLERS,
    OTHER_CUSTOMERS,
    OTHER_TENANT_CUSTOMERS,
    OTHER_TENANT_STAFF,
    OWNERS,
    STAFF,
    UNAUTHENTICATED,
    Callers,
    open_callers,
)
from tests.instance_fixtures import HEARTBEAT, KEY_ID, RunningInstance, running_instance
from tests.lifecycle import BOOT
from tests.services import Services

pytestmark = pytest.mark.asyncio(loop_scope="module")

Statuses = dict[str, int]

REFUSED = frozenset({401, 403, 404})
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "content-type": "application/json",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Row(NamedTuple):
    """`is_used_up`: each admitted caller needs an instance of its own, because nothing is left to do for the next."""

    statuses: Statuses
    body: Any = None
    is_used_up: bool = False


def each(who: tuple[str, ...], status: int) -> Statuses:
    return dict.fromkeys(who, status)


def of_an_instance(*, owners: int = 200, staff: int = 200) -> Statuses:
    """The general rule: owner and staff are admitted, other customers of the tenant get a 403, and other tenants a 404."""
    return {
        **each(UNAUTHENTICATED, 401),
        **each(OTHER_TENANT_STAFF + OTHER_TENANT_CUSTOMERS, 404),
        **each(OTHER_CUSTOMERS, 403),
        **each(OWNERS, owners),
        **each(STAFF, staff),
    }


def of_own_instances(status: int) -> Statuses:
    """Every caller with valid credentials is admitted, and sees its own instances."""
    return each(ALL_CALLERS, status) | each(UNAUTHENTICATED, 401)


#: Customers are refused before anything is looked at.
NO_CUSTOMERS = each(OTHER_TENANT_CUSTOMERS + OTHER_CUSTOMERS + OWNERS, 403)
OF_ITS_AGENT = each(ALL_CALLERS, 401) | {"agent": 200}
OPEN_TO_ALL = each(ALL_CALLERS, 200)
CLOSED_TO_ALL = each(ALL_CALLERS, 401)

BOOT_ID, OTHER_KEY_ID = str(BOOT), str(UUID(int=0xC2))
ORDER = {"region_id": "local", "tier_id": "starter"}
ENTRY = {
    "at_ms": 1_790_000_000_000,
    "model": "gpt-4.1-mini",
    "prompt_tokens": 7,
    "completion_tokens": 2,
    "cost_usd": "0.001",
    "channel": "api",
}
ENROLMENT = {
    "instance_id": str(uuid4()),
    "attempt": 1,
    "token": "wrong",
    "boot_id": BOOT_ID,
    "public_keys": {"signing": "A" * 43 + "=", "vpn": "A" * 43 + "="},
}

ROWS = {
    ("GET", "/v1/instances"): Row(of_own_instances(200)),
    ("POST", "/v1/instances"): Row(of_own_instances(202), ORDER),
    ("POST", "/v1/instances/cleanup"): Row(of_own_instances(200) | NO_CUSTOMERS),
    ("GET", "/v1/instances/by-key/{idempotency_key}"): Row(of_own_instances(200)),
    ("GET", "/v1/instances/{instance_id}"): Row(of_an_instance()),
    ("DELETE", "/v1/instances/{instance_id}"): Row(of_an_instance(), is_used_up=True),
    ("GET", "/v1/instances/{instance_id}/events"): Row(of_an_instance()),
    ("GET", "/v1/instances/{instance_id}/logs"): Row(of_an_instance()),
    ("GET", "/v1/instances/{instance_id}/runtime"): Row(of_an_instance()),
    ("GET", "/v1/instances/{instance_id}/usage"): Row(of_an_instance()),
    ("POST", "/v1/instances/{instance_id}/chat"): Row(of_an_instance(), {"message": "Hello"}),
    ("GET", "/v1/instances/{instance_id}/config"): Row(of_an_instance()),
    ("POST", "/v1/instances/{instance_id}/config"): Row(of_an_instance(), {"agent_name": "Ada"}),
    ("GET", "/v1/instances/{instance_id}/platform-config"): Row(of_an_instance()),
    ("PATCH", "/v1/instances/{instance_id}/platform-config"): Row(of_an_instance(), {"advanced": {"a": 1}}),
    ("PATCH", "/v1/instances/{instance_id}/model-policy"): Row(of_an_instance(), {"temperature": 1}),
    ("POST", "/v1/instances/{instance_id}/updates/apply"): Row(of_an_instance(), {"force": True}),
    # Conversations are the owner's: staff may not read them without consent, and only the owner can consent.
    ("PATCH", "/v1/instances/{instance_id}/consent"): Row(of_an_instance(staff=403), {"consent_debug_access": False}),
    ("GET", "/v1/instances/{instance_id}/conversations"): Row(of_an_instance(staff=403)),
    ("GET", "/v1/instances/{instance_id}/conversations/{conversation_id}"): Row(of_an_instance(staff=403)),
    ("POST", "/v1/instances/admin/{instance_id}/rotate-key"): Row(of_an_instance() | NO_CUSTOMERS, is_used_up=True),
    # The credentials of these two are in the body, and are wrong here.
    ("POST", "/v1/agent/enroll"): Row(CLOSED_TO_ALL, ENROLMENT),
    ("POST", "/v1/agent/secrets"): Row(
        CLOSED_TO_ALL, {name: ENROLMENT[name] for name in ("instance_id", "attempt", "boot_id")}
    ),
    ("POST", "/v1/agent/secrets/ack"): Row(OF_ITS_AGENT, {"boot_id": BOOT_ID, "key_id": str(KEY_ID)}),
    ("POST", "/v1/agent/callback"): Row(
        # Its server has long been running, and no boot of that id has enrolled.
        OF_ITS_AGENT | {"agent": 410},
        {"boot_id": str(uuid4()), "seq": 1, "stage": "booted", "level": "info", "message": ""},
    ),
    ("POST", "/v1/agent/heartbeat"): Row(OF_ITS_AGENT, HEARTBEAT),
    ("POST", "/v1/agent/config"): Row(OF_ITS_AGENT, {"boot_id": BOOT_ID}),
    ("POST", "/v1/agent/usage"): Row(
        OF_ITS_AGENT, {"boot_id": BOOT_ID, "ledger_id": BOOT_ID, "seq": 1, "entries": [ENTRY]}
    ),
    ("GET", "/health/live"): Row(OPEN_TO_ALL),
    ("GET", "/health/ready"): Row(OPEN_TO_ALL),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def callers(services: Services) -> AsyncGenerator[Callers]:
    async with open_callers(services) as opened:
        yield opened


async def test_every_operation_has_a_row_and_every_row_has_all_callers() -> None:
    assert set(ROWS) == {(op.declared.method, op.declared.path) for op in every_operation()}
    assert all(set(row.statuses) == set(ALL_CALLERS) for row in ROWS.values())


async def ask(callers: Callers, operation: tuple[str, str], who: str, *, instance_id: UUID) -> httpx.Response:
    method, path = operation
    path = path.format(instance_id=instance_id, idempotency_key="k", conversation_id="c-1")
    return await callers.api.client.request(method, path, json=ROWS[operation].body, headers=callers.headers[who])


@pytest.mark.parametrize("operation", ROWS, ids=" ".join)
async def test_each_caller_gets_its_status_and_a_refused_call_leaves_no_trace(
    callers: Callers, operation: tuple[str, str]
) -> None:
    row = ROWS[operation]
    got: Statuses = {}
    traces: dict[str, tuple[int, ...]] = {}
    before = await callers.side_effects()

    # The refused callers come first: nothing is claimed about the traces of the others.
    for who in sorted(ALL_CALLERS, key=lambda each: row.statuses[each] not in REFUSED):
        async with AsyncExitStack() as stack:
            instance = callers.instance
            if row.is_used_up and row.statuses[who] not in REFUSED:
                instance = await stack.enter_async_context(running_instance(callers.api))
            answer = await ask(callers, operation, who, instance_id=instance.instance_id)
        got[who] = answer.status_code
        traces[who] = await callers.side_effects()
        assert "x-request-id" in answer.headers
        assert answer.headers.items() >= HEADERS.items()
        assert answer.headers.get("www-authenticate") == ("Bearer" if answer.status_code == 401 else None)
        assert answer.status_code < 400 or set(answer.json()) == {"detail"}

    assert got == row.statuses
    assert {who for who in ALL_CALLERS if got[who] in REFUSED and traces[who] != before} == set()


@pytest.mark.parametrize("operation", [key for key in ROWS if "{instance_id}" in key[1]], ids=" ".join)
async def test_an_instance_of_another_tenant_is_indistinguishable_from_an_absent_one(
    callers: Callers, operation: tuple[str, str]
) -> None:
    for who in OTHER_TENANT_STAFF + OTHER_TENANT_CUSTOMERS:
        theirs = await ask(callers, operation, who, instance_id=callers.instance.instance_id)
        absent = await ask(callers, operation, who, instance_id=uuid4())

        assert (theirs.status_code, theirs.content) == (absent.status_code, absent.content)


async def test_an_agent_s_request_affects_only_its_own_instance(callers: Callers) -> None:
    """Its key says which instance a request is about, and not its body."""
    async with running_instance(callers.api) as other:
        before = await versions(callers.instance, other)
        answer = await other.agent_post("heartbeat", {**HEARTBEAT, "instance_id": str(callers.instance.instance_id)})

        assert answer.status_code == 200
        assert await versions(callers.instance, other) == before
    row = await callers.owner_conn.execute(
        "SELECT count(*) FROM heartbeat WHERE instance_id = %s", (other.instance_id,)
    )
    assert await row.fetchone() == (1,)


async def versions(*each: RunningInstance) -> list[int]:
    return [await instance.version() for instance in each]
