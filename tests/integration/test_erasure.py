"""An erased customer's data is unreadable everywhere: in the log and in the read tables."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Thread
from uuid import UUID, uuid4

import psycopg
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from events import commands as c
from events.ids import command_id_for, instance_id_for
from events.keys import Keyring
from events.master_keys import MasterKeys
from hydracore.audit import erasing
from hydracore.cli import main
from hydracore.signals import run_to_completion
from hydracore.wording import plural
from projections.rebuild import ProgressCallbacks, rebuild, rollback
from projections.registry import projections
from tests import lifecycle
from tests.customers import (
    EMAIL,
    MASTER_KEY,
    PROMPT,
    World,
    create_sealed_instance,
    last_event,
    readable_fields,
    world_fixture,
)
from tests.rebuilding import dry_run_here, fold_here
from tests.stack import Stack
from tests.store_commands import open_store, origin, request
from workers.advance import advance

__all__ = ["world_fixture"]

#: The purpose in the id of the command that records an erasure in an instance, so that it is recorded only once.
COMMAND = "erase-customer"

#: The phases of a rebuild, in order.
PHASES = ("folding", "indexing", "comparing", "swapping")

_RECORDED_BY = "SELECT command_id FROM event WHERE stream_id = %s AND type = 'customer_erased'"


async def test_an_erasure_covers_the_log_and_the_read_tables_of_the_customer_and_no_other_customer(
    world: World, owner_conn: psycopg.AsyncConnection
) -> None:
    await world.store.load(world.ada[0])
    assert await readable_fields(world.url, world.ada[0], "ada") == [EMAIL, PROMPT]

    first, second = [await asyncio.to_thread(world.erase, "--also-live", "--yes", "--json") for _ in range(2)]

    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    done = {"tenant_id": "acme", "customer_id": "ada", "instances": 3, "live": 1}
    assert json.loads(first.stdout) == {**done, "recorded": 3, "key_destroyed": True}
    assert json.loads(second.stdout) == {**done, "recorded": 0, "key_destroyed": False}
    for stream_id in world.ada:
        assert await readable_fields(world.url, stream_id, "ada") == []
        assert await last_event(world.url, stream_id) == "customer_erased"
    assert await readable_fields(world.url, world.bob, "bob") == [EMAIL, PROMPT]
    rows = await owner_conn.execute("SELECT customer_id, count(customer_email) FROM instance GROUP BY 1 ORDER BY 1")
    assert await rows.fetchall() == [("ada", 0), ("bob", 1)]
    (order,) = world.file.read()
    assert order.customer == ("acme", "ada")


async def test_an_erasure_does_not_affect_another_tenant_s_customer_of_the_same_name(
    world: World, owner_conn: psycopg.AsyncConnection
) -> None:
    keyring = Keyring(world.pool, master_keys=MasterKeys(MASTER_KEY))
    theirs = await create_sealed_instance(world.store, keyring, "ada", "key", tenant="other")

    result = await asyncio.to_thread(world.erase, "--tenant", "acme", "--also-live", "--yes", "--json")

    done = json.loads(result.stdout)
    assert (done["instances"], done["live"], done["recorded"]) == (3, 1, 3)
    assert await readable_fields(world.url, theirs, "ada", tenant="other") == [EMAIL, PROMPT]
    assert await last_event(world.url, theirs) == "config_changed"
    row = await owner_conn.execute("SELECT customer_email IS NOT NULL FROM instance WHERE tenant_id = 'other'")
    assert await row.fetchone() == (True,)


async def test_verification_and_rebuilds_succeed_after_an_erasure(world: World) -> None:
    erased = await asyncio.to_thread(world.erase, "--also-live", "--yes")
    assert erased.exit_code == 0

    verified = await asyncio.to_thread(world.run, "audit", "verify", "--json")
    rebuilt = await asyncio.to_thread(world.run, "projections", "rebuild", "instance", "--dry-run", "--workers", "1")

    assert (verified.exit_code, json.loads(verified.stdout)["findings"]) == (0, [])
    assert rebuilt.exit_code == 0, rebuilt.output


async def test_a_rebuild_includes_erasures_that_happen_during_any_of_its_phases(
    world: World, owner_conn: psycopg.AsyncConnection
) -> None:
    keyring, phases = Keyring(world.pool, master_keys=MasterKeys(MASTER_KEY)), list[str]()
    for customer in PHASES:
        await create_sealed_instance(world.store, keyring, customer, "key")

    def erase(customer: str) -> None:
        """Another process erases the customer that is named like the phase."""
        phases.append(customer)
        with ThreadPoolExecutor(1) as other:
            other.submit(world.run, "audit", "erase-customer", customer, "--also-live", "--yes").result()

    callbacks, projection = ProgressCallbacks(phase=erase, folded=lambda _: None), projections()["instance"]
    report = await rebuild(world.url, projection, folding=fold_here(world.url), callbacks=callbacks, accept_drift=False)

    assert (tuple(phases), report.drifted) == (PHASES, 0)
    rows = await owner_conn.execute(
        "SELECT customer_id FROM instance WHERE customer_email IS NOT NULL GROUP BY 1 ORDER BY 1"
    )
    assert await rows.fetchall() == [("ada",), ("bob",)]
    await rollback(world.url, projection)
    assert (await dry_run_here(world.url, projection)).drifted == 0


async def test_a_customer_with_a_live_instance_is_not_erased_without_also_live(world: World) -> None:
    result = await asyncio.to_thread(world.erase, "--yes")

    assert result.exit_code == 2
    assert f"has 1 instance that is not deleted ({world.ada[2]}). Delete them first" in result.stderr
    assert not world.file.erasures()
    assert await readable_fields(world.url, world.ada[0], "ada") == [EMAIL, PROMPT]


async def test_an_erasure_asks_for_confirmation_and_is_refused_without_a_yes(world: World) -> None:
    env, words = world.environ, ["audit", "erase-customer", "ada", "--tenant", "acme", "--also-live"]
    answers = {
        answer: await asyncio.to_thread(CliRunner().invoke, main, words, env=env, input=answer)
        for answer in ("n\n", "", "y\n")
    }

    assert [result.exit_code for result in answers.values()] == [2, 2, 0]
    assert "has 3 instances, 1 of them not deleted." in answers["n\n"].stderr
    assert answers["y\n"].stdout.startswith("customer ada of tenant acme: key destroyed, recorded in 3 of 3 instances")


@pytest.mark.parametrize(("customer", "whose"), [("ada", "their histories"), ("bob", "its history")])
async def test_the_confirmation_question_names_the_histories_in_singular_or_plural(
    world: World, customer: str, whose: str
) -> None:
    asked = await asyncio.to_thread(world.run, "audit", "erase-customer", customer, "--also-live")

    assert f"Make all personal data in {whose} unreadable for good?" in asked.stderr


async def test_an_erasure_of_an_ambiguous_or_unknown_customer_or_without_an_erasure_file_is_refused(
    world: World,
) -> None:
    keyring = Keyring(world.pool, master_keys=MasterKeys(MASTER_KEY))
    await keyring.seal(EMAIL, tenant_id="other", customer_id="ada", field="customer_email")

    several = await asyncio.to_thread(world.erase, "--yes")
    unknown = await asyncio.to_thread(world.erase, "--yes", "--tenant", "nobody")
    no_file = await asyncio.to_thread(world.run, "audit", "erase-customer", "ada", HYDRACORE_ERASURE_FILE="")

    assert "Tenants acme, other have a customer ada: choose one with --tenant" in several.stderr
    assert "There is no customer ada of tenant nobody" in unknown.stderr
    assert "HYDRACORE_ERASURE_FILE is missing" in no_file.stderr
    assert [each.exit_code for each in (several, unknown, no_file)] == [2, 2, 2]
    assert not world.file.erasures()


async def test_an_erasure_is_also_recorded_in_an_instance_created_during_it_with_data_sealed_before(
    world: World,
) -> None:
    keyring = Keyring(world.pool, master_keys=MasterKeys(MASTER_KEY))
    whose = {"tenant_id": "acme", "customer_id": "ada"}
    email = await keyring.seal(EMAIL, **whose, field="customer_email")
    late = instance_id_for(**whose, idempotency_key="late")

    async def create_late() -> None:
        async with open_store(world.url) as (store, _):
            if await store.load(late) is None:
                await store.create(late, replace(request("ada", "late"), customer_email=email), origin())

    def in_the_middle(_done: int) -> None:
        """Another process creates an instance, while the erasure is being recorded in the first streams."""
        thread = Thread(target=run_to_completion, args=(create_late(),))
        thread.start()
        thread.join()

    progress = erasing.ErasureProgress(
        order_begun=lambda: None, order_recorded=lambda: None, key_destroyed=lambda: None, instances_done=in_the_middle
    )
    order = {"actor": "test", "correlation_id": uuid4(), "clock": lambda: datetime.now(UTC)}
    customer = await erasing.find_customer(world.pool, "ada", tenant_id=None)
    erased = await erasing.Eraser(world.pool, world.store, world.file, **order).erase(customer, progress)

    assert (erased.recorded, erased.instances, erased.live) == (len(world.ada) + 1, len(world.ada) + 1, 2)
    assert await last_event(world.url, late) == "customer_erased"


async def test_an_erasure_destroys_the_key_again_if_a_standby_without_its_destruction_took_over(world: World) -> None:
    def lacking(_done: int) -> None:
        with psycopg.connect(world.url) as connection:
            connection.execute("UPDATE customer_key SET wrapped_key = kept, destroyed_at = NULL FROM old")

    with psycopg.connect(world.url) as connection:
        connection.execute("CREATE TABLE old AS SELECT wrapped_key AS kept FROM customer_key WHERE customer_id = 'ada'")
    progress = erasing.ErasureProgress(
        order_begun=lambda: None, order_recorded=lambda: None, key_destroyed=lambda: None, instances_done=lacking
    )
    order = {"actor": "test", "correlation_id": uuid4(), "clock": lambda: datetime.now(UTC)}
    customer = await erasing.find_customer(world.pool, "ada", tenant_id=None)

    erased = await erasing.Eraser(world.pool, world.store, world.file, **order).erase(customer, progress)

    assert erased.recorded == len(world.ada)
    assert await readable_fields(world.url, world.ada[0], "ada") == []


@pytest.mark.parametrize("meanwhile", [(), (lifecycle.delete(),)], ids=["new", "deletion requested at once"])
async def test_an_instance_created_after_an_erasure_has_it_recorded_by_the_worker_that_advances_it(
    stack: Stack, world: World, owner_conn: psycopg.AsyncConnection, meanwhile: tuple[c.AnyCommand, ...]
) -> None:
    keyring = Keyring(world.pool, master_keys=MasterKeys(MASTER_KEY))
    whose = {"tenant_id": "acme", "customer_id": "ada"}
    email = await keyring.seal(EMAIL, **whose, field="customer_email")
    late = instance_id_for(**whose, idempotency_key="late")
    assert (await asyncio.to_thread(world.erase, "--also-live", "--yes")).exit_code == 0

    # In a region in which no server can be created.
    nowhere = replace(request("ada", "late"), customer_email=email, region_id="nowhere")
    await world.store.create(late, nowhere, origin())
    for command in meanwhile:
        await world.store.execute(late, command, origin())
    async with stack.deps(database_url=world.url) as deps:
        for _ in range(2):
            await advance(deps, late)
        state = await deps.store.load(late)

    assert state is not None
    assert state.erased_ms is not None
    assert state.customer_email is None
    assert await recorded_by(owner_conn, late, world.ada[0]) == [COMMAND, COMMAND]
    erased = await asyncio.to_thread(world.erase, "--also-live", "--yes")
    assert "nothing was left to do" in erased.stdout


async def test_a_broken_stream_does_not_keep_an_erasure_from_being_recorded_in_other_streams(
    world: World, owner_conn: psycopg.AsyncConnection
) -> None:
    cut, edited, whole = sorted(world.ada)
    await owner_conn.execute(
        "DELETE FROM event e USING stream s WHERE s.stream_id = %s AND e.stream_id = s.stream_id AND e.version = s.version",
        (cut,),
    )
    await owner_conn.execute("UPDATE event SET payload = '{}' WHERE stream_id = %s AND version = 2", (edited,))

    erased = await asyncio.to_thread(world.erase, "--also-live", "--yes")
    migrated = await asyncio.to_thread(world.run, "db", "migrate")

    assert await last_event(world.url, whole) == "customer_erased"
    for result, recorded in ((erased, 1), (migrated, 0)):
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 1
        assert (
            f"recorded in {plural(recorded, 'instance')}, but could not be recorded in 2 instances: {cut} (Lane "
            in line
        )
        assert "and its events end with" in line
        assert f"; {edited} (" in line
    assert await readable_fields(world.url, whole, "ada") == []


async def recorded_by(connection: psycopg.AsyncConnection, *stream_ids: UUID) -> list[str]:
    """The purpose of the one command that recorded the erasure in each instance, or its id if it is another command."""
    commands = list[str]()
    for stream_id in stream_ids:
        ((command_id,),) = await (await connection.execute(_RECORDED_BY, (stream_id,))).fetchall()
        commands.append(COMMAND if command_id == command_id_for(stream_id, COMMAND) else str(command_id))
    return commands
