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
from tests.lives import BOOT
from tests.scene import (
    EVERYBODY,
    FOREIGN_CUSTOMERS,
    FOREIGN_STAFF,
    NEIGHBOURS,
    OWNERS,
    STAFF,
    STRANGERS,
    Scene,
    open_scene,
)
from tests.services import Services
from tests.use_fixtures import BEAT, KEY_ID, Used, in_use

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
        **each(STRANGERS, 401),
        **each(FOREIGN_STAFF + FOREIGN_CUSTOMERS, 404),
        **each(NEIGHBOURS, 403),
        **each(OWNERS, owners),
        **each(STAFF, staff),
    }


def of_own_instances(status: int) -> Statuses:
    """Every caller with valid credentials is admitted, and sees its own instances."""
    return each(EVERYBODY, status) | each(STRANGERS, 401)


#: Customers are refused before anything is looked at.
NO_CUSTOMERS = each(FOREIGN_CUSTOMERS + NEIGHBOURS + OWNERS, 403)
OF_ITS_AGENT = each(EVERYBODY, 401) | {"agent": 200}
OPEN_TO_ALL = each(EVERYBODY, 200)
CLOSED_TO_ALL = each(EVERYBODY, 401)

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
    ("POST", "/v1/agent/heartbeat"): Row(OF_ITS_AGENT, BEAT),
    ("POST", "/v1/agent/config"): Row(OF_ITS_AGENT, {"boot_id": BOOT_ID}),
    ("POST", "/v1/agent/usage"): Row(
        OF_ITS_AGENT, {"boot_id": BOOT_ID, "ledger_id": BOOT_ID, "seq": 1, "entries": [ENTRY]}
    ),
    ("GET", "/health/live"): Row(OPEN_TO_ALL),
    ("GET", "/health/ready"): Row(OPEN_TO_ALL),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(services: Services) -> AsyncGenerator[Scene]:
    async with open_scene(services) as opened:
        yield opened


async def test_every_operation_has_a_row_and_every_row_has_all_callers() -> None:
    assert set(ROWS) == {(op.declared.method, op.declared.path) for op in every_operation()}
    assert all(set(row.statuses) == set(EVERYBODY) for row in ROWS.values())


async def ask(scene: Scene, operation: tuple[str, str], who: str, *, instance_id: UUID) -> httpx.Response:
    method, path = operation
    path = path.format(instance_id=instance_id, idempotency_key="k", conversation_id="c-1")
    return await scene.api.client.request(method, path, json=ROWS[operation].body, headers=scene.headers[who])


@pytest.mark.parametrize("operation", ROWS, ids=" ".join)
async def test_each_caller_gets_its_status_and_a_refused_call_leaves_no_trace(
    scene: Scene, operation: tuple[str, str]
) -> None:
    row = ROWS[operation]
    got: Statuses = {}
    traces: dict[str, tuple[int, ...]] = {}
    before = await scene.traces()

    # The refused callers come first: nothing is claimed about the traces of the others.
    for who in sorted(EVERYBODY, key=lambda each: row.statuses[each] not in REFUSED):
        async with AsyncExitStack() as stack:
            used = scene.used
            if row.is_used_up and row.statuses[who] not in REFUSED:
                used = await stack.enter_async_context(in_use(scene.api))
            answer = await ask(scene, operation, who, instance_id=used.instance_id)
        got[who] = answer.status_code
        traces[who] = await scene.traces()
        assert "x-request-id" in answer.headers
        assert answer.headers.items() >= HEADERS.items()
        assert answer.headers.get("www-authenticate") == ("Bearer" if answer.status_code == 401 else None)
        assert answer.status_code < 400 or set(answer.json()) == {"detail"}

    assert got == row.statuses
    assert {who for who in EVERYBODY if got[who] in REFUSED and traces[who] != before} == set()


@pytest.mark.parametrize("operation", [key for key in ROWS if "{instance_id}" in key[1]], ids=" ".join)
async def test_an_instance_of_another_tenant_is_indistinguishable_from_an_absent_one(
    scene: Scene, operation: tuple[str, str]
) -> None:
    for who in FOREIGN_STAFF + FOREIGN_CUSTOMERS:
        theirs = await ask(scene, operation, who, instance_id=scene.used.instance_id)
        absent = await ask(scene, operation, who, instance_id=uuid4())

        assert (theirs.status_code, theirs.content) == (absent.status_code, absent.content)


async def test_an_agent_s_request_affects_only_its_own_instance(scene: Scene) -> None:
    """Its key says which instance a request is about, and not its body."""
    async with in_use(scene.api) as other:
        before = await versions(scene.used, other)
        answer = await other.agent_says("heartbeat", {**BEAT, "instance_id": str(scene.used.instance_id)})

        assert answer.status_code == 200
        assert await versions(scene.used, other) == before
    row = await scene.owner_conn.execute("SELECT count(*) FROM heartbeat WHERE instance_id = %s", (other.instance_id,))
    assert await row.fetchone() == (1,)


async def versions(*each: Used) -> list[int]:
    return [await used.version() for used in each]
