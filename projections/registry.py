"""Every projection of this code, by name."""

from __future__ import annotations

from projections.definition import Projection
from projections.followed import followed_projections
from projections.inline import inline_projections
from projections.versions import Versions


def projections() -> dict[str, Projection]:
    """The newest version of each projection, inline ones first."""
    return {name: versions[max(versions)] for name, versions in all_versions().items()}


def all_versions() -> dict[str, dict[int, Projection]]:
    """Every version of each projection that this code can write, by number."""
    found: dict[str, dict[int, Projection]] = {}
    for projection in (*inline_projections(), *followed_projections()):
        if isinstance(projection, Versions):
            found[projection.name] = dict(projection.known)
        else:
            found[projection.name] = {projection.version: projection}
    return found
