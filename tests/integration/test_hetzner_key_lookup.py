"""A lookup of a project's SSH key is shared by concurrent creates, which may all be cancelled before it ends."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from tests.cloudsim_fixtures import CloudsimProcess
from tests.orphan_servers import create_orphan
from tests.waiting import until
from workers.providers.hetzner import HetznerProvider


async def test_a_key_lookup_that_fails_after_its_creates_were_cancelled_is_no_unhandled_error(
    cloudsim: CloudsimProcess, driver: HetznerProvider
) -> None:
    unhandled = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    lookups = await abandoned_lookup(cloudsim, driver)

    cloudsim.call("POST", "/_sim/release", {"all": True, "apply": False})
    await until(lambda: all(lookup.done() for lookup in lookups))
    lookups.clear()
    await create_orphan(driver)
    gc.collect()

    assert unhandled == []


async def test_a_key_lookup_whose_creates_were_cancelled_ends_when_the_driver_is_closed(
    cloudsim: CloudsimProcess, driver: HetznerProvider
) -> None:
    lookups = await abandoned_lookup(cloudsim, driver)

    await driver.aclose()

    assert all(lookup.done() for lookup in lookups)


async def abandoned_lookup(cloudsim: CloudsimProcess, driver: HetznerProvider) -> list[asyncio.Task[Any]]:
    """The task of a lookup that the provider holds up, after the create that began it was cancelled."""
    before = asyncio.all_tasks()
    cloudsim.fault("list_ssh_keys", "hold_before")
    creating = asyncio.create_task(create_orphan(driver))
    await until(cloudsim.held)
    creating.cancel()
    await asyncio.wait([creating])
    (lookup,) = asyncio.all_tasks() - before
    return [lookup]
