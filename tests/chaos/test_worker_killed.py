"""A worker killed with -9 right before or right after a call of the provider was applied, for every call there is.

Each test has several instances at the same call at once, and each of their calls meets another fate: `dropped` (never
applied), `late` (applied when the worker was dead already), `much_later` (applied when its successor had done the work),
`applied` (and the answer never read). One kill, one fresh worker, and all must come to the right end.
"""

import asyncio
from typing import Any, Final, NamedTuple
from uuid import UUID

import pytest

from tests.orphan_servers import create_orphan
from tests.stack import Stack
from workers.broker import POLL_ACTIONS, SWEEP
from workers.providers.hetzner import HetznerProvider
from workers.sweep import sweep

FAULTS: Final = {
    "dropped": "hold_before",
    "late": "hold_before",
    "much_later": "hold_before",
    "applied": "hold_after",
}
#: A call that changes nothing has no more fates than these.
READ: Final = ("dropped", "applied")
CHANGE: Final = ("dropped", "late", "applied")

#: Long enough for an agent to come after the question how its server fares.
SLOW_BOOT_S: Final = 3.0


class Call(NamedTuple):
    """A call of the provider. `skip`: how many such calls of the same instance go well before it. `first`: what goes
    wrong with the creates, so that it comes to this call."""

    what: str
    operation: str
    fates: tuple[str, ...]
    skip: int = 0
    first: str | None = None

    def about(self, stack: Stack, ids: list[UUID]) -> list[dict[str, Any]]:
        """How cloudsim tells each instance's call from the others'; not at all where it is about no single server."""
        if self.operation == "get_server":
            return [{"server_id": int(stack.logged_server_id(each))} for each in ids]
        if self.operation in {"create_server", "delete_server"}:
            return [{"name": f"hc-{each}"} for each in ids]
        return [{} for _ in ids]


CREATE_CALLS: Final = (
    Call("create", "create_server", ("dropped", "late", "much_later", "applied")),
    Call("look for what an unanswered create made", "list_servers", READ, first="drop_reply"),
    Call("ask how the servers fare", "get_actions", READ, first="slow_boot"),
    Call("look for a failed attempt's server", "list_servers", READ, first="action_error"),
    Call("delete a failed attempt's server", "delete_server", CHANGE, first="action_error"),
    Call("see a failed attempt's server gone", "list_servers", READ, skip=1, first="action_error"),
)
DELETE_CALLS: Final = (
    Call("look for the server", "list_servers", READ),
    Call("delete the server", "delete_server", CHANGE),
    Call("see it gone by label", "list_servers", READ, skip=1),
    Call("see it gone by id", "get_server", READ),
    Call("see it gone by label again", "list_servers", READ, skip=2),
    Call("see it gone by id again", "get_server", READ, skip=1),
)
#: Each of these is one worker's for all of its creates, and meets one fate a test.
KEY_CALLS: Final = tuple(
    Call(f"{operation}, {fate}", operation, (fate,))
    for operation, fates in (("list_ssh_keys", READ), ("create_ssh_key", CHANGE))
    for fate in fates
)
SWEEP_CALLS: Final = (
    Call("list what there is", "list_servers", READ),
    Call("mend the labels", "update_server", CHANGE),
    Call("ask by id for what is not listed", "get_server", READ),
    Call("remove an orphan", "delete_server", CHANGE),
)


def call_name(call: Call) -> str:
    return call.what


@pytest.mark.parametrize("call", CREATE_CALLS, ids=call_name)
async def test_a_create_survives_a_worker_killed_at_any_of_its_provider_calls(stack: Stack, call: Call) -> None:
    asked = [stack.new_key() for _ in call.fates]
    ids = [instance_id for _, instance_id in asked]
    if call.first is not None:
        for instance_id in ids:
            stack.cloudsim.fault("create_server", call.first, name=f"hc-{instance_id}", delay_s=SLOW_BOOT_S)
    about = call.about(stack, ids)
    arrange(stack, call, about)
    await asyncio.gather(*(stack.create(key) for key, _ in asked))
    if call.first in {"slow_boot", "action_error"}:
        await stack.until(lambda: all(stack.has_happened(each, "server_created") for each in ids))
        for _ in call.fates:
            stack.hint(POLL_ACTIONS)

    held = await kill_at(stack, call, about)

    for instance_id, fate in zip(ids, call.fates, strict=True):
        await stack.until_status(instance_id, "running")
        if call.operation == "create_server":
            assert stack.has_happened(instance_id, "server_created", attempt=1)
            assert stack.has_happened(instance_id, "server_created", adopted=True) == (fate in {"late", "applied"})
    held.release("much_later")
    for instance_id in ids:
        assert stack.server(instance_id)["id"] == int(stack.logged_server_id(instance_id))
    await delete_all(stack, ids)


@pytest.mark.parametrize("call", KEY_CALLS, ids=call_name)
async def test_a_create_survives_a_worker_killed_while_it_ensures_its_ssh_key(stack: Stack, call: Call) -> None:
    for key in stack.cloudsim.call("GET", "/v1/ssh_keys")["ssh_keys"]:
        stack.cloudsim.call("DELETE", f"/v1/ssh_keys/{key['id']}")
    # Only a worker that has made no server yet looks for the key.
    stack.restart_worker()
    await stack.until_started(stack.worker)
    arrange(stack, call, [{}])
    ids = list(await asyncio.gather(stack.create(), stack.create()))

    await kill_at(stack, call, [{}])

    for instance_id in ids:
        await stack.until_status(instance_id, "running")
        stack.server(instance_id)
    assert len(stack.cloudsim.call("GET", "/v1/ssh_keys")["ssh_keys"]) == 1
    await delete_all(stack, ids)


@pytest.mark.parametrize("call", DELETE_CALLS, ids=call_name)
async def test_a_delete_survives_a_worker_killed_at_any_of_its_provider_calls(stack: Stack, call: Call) -> None:
    ids = await asyncio.gather(*(stack.running() for _ in call.fates))
    about = call.about(stack, ids)
    arrange(stack, call, about)
    await asyncio.gather(*(stack.delete(instance_id) for instance_id in ids))

    await kill_at(stack, call, about)

    for instance_id in ids:
        await stack.until_status(instance_id, "deleted")
        stack.assert_no_server(instance_id)


@pytest.mark.parametrize("call", SWEEP_CALLS, ids=call_name)
async def test_a_sweep_survives_a_worker_killed_at_any_of_its_provider_calls(
    stack: Stack, provider: HetznerProvider, call: Call
) -> None:
    orphan = await create_orphan(provider)
    async with stack.deps() as deps:
        await sweep(deps, dry_run=False)
    assert stack.rows("UPDATE orphan SET first_seen_at = '-infinity' WHERE server_id = %s RETURNING 1", orphan)
    ids = [await stack.running(), await stack.running()]
    mislabelled, unlisted = (stack.logged_server_id(instance_id) for instance_id in ids)
    labels = [stack.cloudsim.server(each)["labels"] for each in (mislabelled, unlisted)]
    await provider.set_labels(mislabelled, {"hc-installation": "hydracore"})
    await provider.set_labels(unlisted, {})
    targets = {"update_server": mislabelled, "get_server": unlisted, "delete_server": orphan}
    target = {"server_id": int(targets[call.operation])} if call.operation in targets else {}
    arrange(stack, call, [target] * len(call.fates))
    for _ in call.fates:
        stack.hint(SWEEP)

    await kill_at(stack, call, [target] * len(call.fates))

    await stack.until_started(stack.worker)
    for _ in range(2):
        stack.hint(SWEEP)
    await stack.until(lambda: [stack.cloudsim.server(each)["labels"] for each in (mislabelled, unlisted)] == labels)
    await stack.until(lambda: orphan not in {str(server["id"]) for server in stack.cloudsim.servers()})
    await delete_all(stack, ids)


class Held(NamedTuple):
    """Calls that are under way. `fates`: by the held request's id."""

    stack: Stack
    fates: dict[int, str]

    def release(self, fate: str) -> None:
        for number in [number for number, given in self.fates.items() if given == fate]:
            self.stack.cloudsim.call("POST", "/_sim/release", {"id": number, "apply": fate in {"late", "much_later"}})


def arrange(stack: Stack, call: Call, about: list[dict[str, Any]]) -> None:
    """The next such call of each instance will be held."""
    for each, fate in zip(about, call.fates, strict=True):
        skip = call.skip if each else call.skip * len(about)
        stack.cloudsim.fault(call.operation, FAULTS[fate], skip=skip, **each)


async def kill_at(stack: Stack, call: Call, about: list[dict[str, Any]]) -> Held:
    """Wait until all calls are held, kill the worker, and start another one."""
    await stack.until(lambda: len(stack.cloudsim.held()) == len(call.fates))
    fates: dict[int, str] = {}
    for request in stack.cloudsim.held():
        fitting = [fate for each, fate in zip(about, call.fates, strict=True) if each.items() <= request.items()]
        fate = next(fate for fate in fitting if fate not in fates.values())
        assert request["applied"] == (fate == "applied")
        fates[request["id"]] = fate
    stack.worker.kill()
    held = Held(stack, fates)
    for fate in CHANGE:
        held.release(fate)
    stack.restart_worker()
    return held


async def delete_all(stack: Stack, ids: list[UUID]) -> None:
    await asyncio.gather(*(stack.delete(instance_id) for instance_id in ids))
    for instance_id in ids:
        await stack.until_status(instance_id, "deleted")
        stack.assert_no_server(instance_id)
