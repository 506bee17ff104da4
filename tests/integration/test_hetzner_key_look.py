"""A look for the SSH key of a project is shared by those who create servers, who may all be gone before it ends."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from tests.cloudsim_fixtures import CloudsimProcess
from tests.strays import stray
from tests.waiting import until
from workers.providers.hetzner import HetznerProvider


async def test_one_that_fails_when_nobody_waits_for_it_any_more_is_no_error_that_was_forgotten(
    cloudsim: CloudsimProcess, driver: HetznerProvider
) -> None:
    forgotten = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: forgotten.append(context))
    looks = await left_look(cloudsim, driver)

    cloudsim.call("POST", "/_sim/release", {"all": True, "apply": False})
    await until(lambda: all(look.done() for look in looks))
    looks.clear()
    await stray(driver)
    gc.collect()

    assert forgotten == []


async def test_one_that_nobody_waits_for_any_more_ends_with_its_provider(
    cloudsim: CloudsimProcess, driver: HetznerProvider
) -> None:
    looks = await left_look(cloudsim, driver)

    await driver.aclose()

    assert all(look.done() for look in looks)


async def left_look(cloudsim: CloudsimProcess, driver: HetznerProvider) -> list[asyncio.Task[Any]]:
    """What goes on of a look that the provider holds up, once whoever began it is gone."""
    before = asyncio.all_tasks()
    cloudsim.fault("list_ssh_keys", "hold_before")
    creating = asyncio.create_task(stray(driver))
    await until(cloudsim.held)
    creating.cancel()
    await asyncio.wait([creating])
    (look,) = asyncio.all_tasks() - before
    return [look]
