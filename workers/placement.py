"""Choose the placement (provider, server type, location) of an attempt, and the hostname and VPN address of an instance."""

from __future__ import annotations

from ipaddress import IPv4Network
from uuid import UUID

from events.retries import run
from events.sql import Statements
from events.state import Instance
from hydracore.catalogue import Catalogue, Placement
from workers.deps import Deps

_TAKEN = Statements("workers", "placement.sql")["taken_addresses"]

#: The addresses that one query checks, and the most queries. If these find no free address, the network counts as full.
ADDRESSES_PER_QUERY = 16
QUERIES_MAX = 256

#: The first addresses of each network, which are left to routers and gateways.
RESERVED_ADDRESSES = 16


def next_placement(catalogue: Catalogue, state: Instance) -> Placement | None:
    """The first candidate of the catalogue that has not failed, or, if all have failed, the next one in turn.

    None if the catalogue has no candidates.
    """
    candidates = catalogue.placements(state.region_id, state.tier_id)
    for candidate in candidates:
        if (candidate.provider, candidate.server_type, candidate.location) not in state.failed_placements:
            return candidate
    return candidates[len(state.failed_placements) % len(candidates)] if candidates else None


def hostname_of(instance_id: UUID) -> str:
    """The instance's hostname, which is a valid DNS label."""
    return f"hc-{instance_id.hex[:16]}"


async def free_address(deps: Deps, state: Instance) -> str | None:
    """An address of the region's network that is neither reserved nor in quarantine, or None if none was found.

    Two workers may find the same address: the reservation's unique index lets one of them have it, and the other searches again. To
    make that rare, the search starts at an offset that is derived from the instance's id.
    """
    network = IPv4Network(deps.catalogue.regions[state.region_id].vpn_network)
    usable = network.num_addresses - RESERVED_ADDRESSES - 1
    start = state.id.int % usable
    for query in range(min(QUERIES_MAX, -(-usable // ADDRESSES_PER_QUERY))):
        offsets = [(start + query * ADDRESSES_PER_QUERY + n) % usable for n in range(min(ADDRESSES_PER_QUERY, usable))]
        addresses = [str(network[RESERVED_ADDRESSES + offset]) for offset in offsets]
        taken = await _taken(deps, addresses)
        for address in addresses:
            if address not in taken:
                return address
    return None


async def _taken(deps: Deps, addresses: list[str]) -> set[str]:
    parameters = {"addresses": addresses, "quarantine_s": deps.settings.address_quarantine_s}
    return {row[0] for row in await run(deps.pool, _TAKEN, parameters)}
