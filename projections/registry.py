"""Every projection that this code has, by name."""

from __future__ import annotations

from projections.definition import Projection
from projections.followed import followed_projections
from projections.inline import inline_projections


def projections() -> dict[str, Projection]:
    """Inline ones first, then followed ones."""
    return {projection.name: projection for projection in (*inline_projections(), *followed_projections())}
