"""Where the next attempt goes, and which addresses an instance gets."""

from __future__ import annotations

from ipaddress import IPv4Network
from uuid import UUID

from events.patience import run
from events.sql import Statements
from events.state import Instance
from hydracore.catalogue import Catalogue, Placement
from workers.deps import Deps

_TAKEN = Statements("workers", "placement.sql")["taken_addresses"]

#: How many addresses one look at the table covers, and how many looks are made before the network counts as full.
PROBES = 16
LOOKS_MAX = 256

#: The first addresses of every network are left to routers and gateways.
RESERVED_ADDRESSES = 16


def next_placement(catalogue: Catalogue, state: Instance) -> Placement | None:
    """The first candidate that has not failed, or, when all have, the one that failed longest ago.

    None where the catalogue has no candidate at all.
    """
    candidates = catalogue.placements(state.region_id, state.tier_id)
    for candidate in candidates:
        if (candidate.provider, candidate.server_type, candidate.location) not in state.failed_placements:
            return candidate
    return candidates[len(state.failed_placements) % len(candidates)] if candidates else None


def hostname_of(instance_id: UUID) -> str:
    """A DNS label of the instance's own."""
    return f"hc-{instance_id.hex[:16]}"


async def free_address(deps: Deps, state: Instance) -> str | None:
    """An address of the region's network that nobody holds or has held lately, or None where there is none.

    Two workers may find the same one: the reservation's unique index decides, and the loser asks again. The walk through
    the network begins at a place that the instance's id gives, so that this is rare.
    """
    network = IPv4Network(deps.catalogue.regions[state.region_id].vpn_network)
    usable = network.num_addresses - RESERVED_ADDRESSES - 1
    start = state.id.int % usable
    for look in range(min(LOOKS_MAX, -(-usable // PROBES))):
        offsets = [(start + look * PROBES + n) % usable for n in range(min(PROBES, usable))]
        addresses = [str(network[RESERVED_ADDRESSES + offset]) for offset in offsets]
        taken = await _taken(deps, addresses)
        for address in addresses:
            if address not in taken:
                return address
    return None


async def _taken(deps: Deps, addresses: list[str]) -> set[str]:
    parameters = {"addresses": addresses, "quarantine_s": deps.settings.address_quarantine_s}
    return {row[0] for row in await run(deps.pool, _TAKEN, parameters)}
