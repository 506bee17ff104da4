"""A request that lands after its customer was erased.

It was sealed before the key was destroyed, and may have been on its way for longer than the erasure waits: then its instance holds what
nobody can open any more, and has not been told. Whoever takes it up looks.
"""

from __future__ import annotations

from msgspec.structs import replace

from events import commands as c
from events import keys
from events.ids import command_id_for
from events.state import Instance
from workers.deps import Deps
from workers.steps import Moved


async def tell_of_erasure(deps: Deps, state: Instance) -> Moved | None:
    """Record in a new instance that its customer was erased, where that is so and it does not say so."""
    # Once something has been begun, somebody has looked; what is sealed later is refused, and what lands later is dropped.
    if state.attempt is not None or state.erased_ms is not None:
        return None
    if not await keys.is_destroyed(deps.pool, tenant_id=state.tenant_id, customer_id=state.customer_id):
        return None
    # With the id of the erasure's own command: of the two, only one is recorded.
    origin = replace(deps.origin(state.id), command_id=command_id_for(state.id, "erase-customer"))
    outcome = await deps.store.execute(state.id, c.EraseCustomer(at_ms=deps.now_ms()), origin)
    return Moved(state=outcome.state)
