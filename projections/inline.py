"""The projections that ride in every append's transaction, in the order in which they are written."""

from __future__ import annotations

from projections.definition import Inline
from projections.instance import InstanceProjection
from projections.provision_log import ProvisionLogProjection
from projections.reservation import ReservationProjection
from projections.versions import Versions


def inline_projections() -> tuple[Inline | Versions, ...]:
    """Everything that reads its own writes."""
    return (ReservationProjection(), InstanceProjection(), ProvisionLogProjection())
