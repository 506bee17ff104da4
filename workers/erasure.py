"""Record the erasure of a customer in instances that were requested too late for the erasure to find them.

A request may be encrypted before the customer's key is destroyed and appended only after the erasure has stopped waiting for such
requests. Its instance then holds data that nobody can decrypt, and no event that says why. The worker that takes up a new instance
checks for that.
"""

from __future__ import annotations

from msgspec.structs import replace

from events import commands as c
from events import keys
from events.ids import command_id_for
from events.state import Instance
from workers.deps import Deps
from workers.steps import Continue


async def record_missed_erasure(deps: Deps, state: Instance) -> Continue | None:
    """Record in a new instance that its customer was erased. None if the customer was not erased, or the log says so already."""
    # An instance with an attempt was checked at its first step. Once the key is destroyed, new data is refused, and late data dropped.
    if state.attempt is not None or state.erased_ms is not None:
        return None
    if not await keys.is_destroyed(deps.pool, tenant_id=state.tenant_id, customer_id=state.customer_id):
        return None
    # The erasure uses the same command id, so that only one of the two commands is recorded.
    origin = replace(deps.origin(state.id), command_id=command_id_for(state.id, "erase-customer"))
    outcome = await deps.store.execute(state.id, c.EraseCustomer(at_ms=deps.now_ms()), origin)
    return Continue(state=outcome.state)
