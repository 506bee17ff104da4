"""The inline projections, which are written in every append's transaction, in this order."""

from __future__ import annotations

from projections.definition import Inline
from projections.instance import InstanceProjection
from projections.provision_log import ProvisionLogProjection
from projections.provision_log_1 import ProvisionLogProjection1
from projections.reservation import ReservationProjection
from projections.versions import Versions


def inline_projections() -> tuple[Inline | Versions, ...]:
    """The projections whose readers must see their own writes at once."""
    provision_log = Versions(ProvisionLogProjection(), ProvisionLogProjection1())
    return (ReservationProjection(), InstanceProjection(), provision_log)
