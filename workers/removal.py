"""Which servers of an instance may go, and their going."""

from __future__ import annotations

from events.errors import VersionConflict
from events.lifecycle import DELETING
from events.state import Instance
from workers.deps import Deps
from workers.labels import instance_labels, is_accounted_for
from workers.providers.base import Provider, Server
from workers.steps import Trouble

#: Servers on their way out take their time: looked at again soon, then ever later.
STILL_THERE = Trouble(code="server_still_there", delay_s=0.3, usual=True)


async def remove_servers(deps: Deps, state: Instance, provider: Provider) -> bool:
    """Order the end of every server of the instance that may go, by id and by label. True while there is still one to see.

    Raises `VersionConflict` where the stream has moved meanwhile.
    """
    found = await provider.find_servers(instance_labels(deps.settings.installation, state.id))
    attempt = state.attempt
    unseen = None
    if attempt is not None and attempt.server_id is not None and attempt.server_id not in {each.id for each in found}:
        known = await provider.get_server(attempt.server_id)
        if known is None:
            unseen = attempt.server_id
        elif known.name == attempt.server_name:
            # Somebody took our labels off it; its id and name still say whose it is.
            found.append(known)
    # Where somebody took its labels off, a later attempt's server looks like one of an older release's.
    await assert_unmoved(deps, state)
    leaving = [server for server in found if may_go(state, server)]
    for server in leaving:
        if server.status != "deleting":
            await provider.delete_server(server.id)
    if unseen is not None:
        # A provider may show late what it has just made. To say that it is gone then takes one that knows it.
        await provider.delete_server(unseen)
    return bool(leaving)


async def assert_unmoved(deps: Deps, state: Instance) -> None:
    """Looking took its time, in which the lock may have been lost and another worker have gone on from what we know.

    Raises `VersionConflict` where the stream has moved since `state`.
    """
    latest = await deps.store.load(state.id)
    actual = 0 if latest is None else latest.version
    if actual != state.version:
        raise VersionConflict(state.id, expected=state.version, actual=actual)


def may_go(state: Instance, server: Server) -> bool:
    """Whether a server of the instance is of no use any more, however old `state` is: a later attempt's may be in use.

    So may one of a history that a restore has lost. Both go with their instance.
    """
    return state.status == DELETING or is_accounted_for(state, server)
