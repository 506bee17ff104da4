"""Delete the servers of an instance at its provider."""

from __future__ import annotations

from events.errors import VersionConflict
from events.lifecycle import DELETING
from events.state import Instance
from workers.deps import Deps
from workers.labels import instance_labels, is_accounted_for
from workers.providers.base import Provider, Server
from workers.steps import Retry

#: The servers are being deleted, which takes a while: looked at again soon, then with a growing backoff.
SERVER_STILL_THERE = Retry(code="server_still_there", delay_s=0.3, is_expected=True)


async def remove_servers(deps: Deps, state: Instance, provider: Provider) -> bool:
    """Delete all servers of the instance that may be deleted, found by label and by id. True while the provider still shows one.

    Raises `VersionConflict` if the stream has changed since `state`.
    """
    found = await provider.find_servers(instance_labels(deps.settings.installation, state.id))
    attempt = state.attempt
    unlisted_id = None
    if attempt is not None and attempt.server_id is not None and attempt.server_id not in {each.id for each in found}:
        known = await provider.get_server(attempt.server_id)
        if known is None:
            unlisted_id = attempt.server_id
        elif known.name == attempt.server_name:
            # Somebody removed our labels from it, but its id and name match.
            found.append(known)
    # If its labels were removed, the server of a later attempt looks like one of an older release.
    await assert_unchanged(deps, state)
    to_delete = [server for server in found if may_delete(state, server)]
    for server in to_delete:
        if server.status != "deleting":
            await provider.delete_server(server.id)
    if unlisted_id is not None:
        # A provider may show a new server late. So it is deleted by its id, even though it is not shown: only then is it surely gone.
        await provider.delete_server(unlisted_id)
    return bool(to_delete)


async def assert_unchanged(deps: Deps, state: Instance) -> None:
    """Raises `VersionConflict` if the stream has changed since `state`.

    While the provider was asked, this worker may have lost its lock, and another one may have advanced the instance.
    """
    latest = await deps.store.load(state.id)
    actual = 0 if latest is None else latest.version
    if actual != state.version:
        raise VersionConflict(state.id, expected=state.version, actual=actual)


def may_delete(state: Instance, server: Server) -> bool:
    """Whether a server of the instance may be deleted. This is safe even if `state` is out of date.

    A server that the history up to `state` does not account for may be in use: it may be a later attempt's, or belong to a part of the
    history that was lost in a restore. It may be deleted only together with the instance.
    """
    return state.status == DELETING or is_accounted_for(state, server)
