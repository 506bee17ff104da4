"""Who may do what to whose instance (docs/api.md)."""

from __future__ import annotations

from typing import Protocol, TypeVar

from hydracore.api.errors import Forbidden, NotFound
from hydracore.auth import Principal

#: Also what another tenant's instance looks like: the two must not differ by a byte.
ABSENT = "Instance not found"


class Owned(Protocol):
    """Anything that belongs to a customer of a tenant."""

    @property
    def tenant_id(self) -> str: ...

    @property
    def customer_id(self) -> str: ...


T = TypeVar("T", bound=Owned)


def require_access(who: Principal, owned: T | None) -> T:
    """Passes the platform's staff, the tenant's admins and the owner; gives back what they asked for.

    Raises `NotFound` where there is nothing or it is another tenant's, `Forbidden` where it is another customer's.
    """
    if owned is None or (who.role != "platform" and who.tenant_id != owned.tenant_id):
        raise NotFound(ABSENT)
    if who.role == "customer" and who.user_id != owned.customer_id:
        raise Forbidden("This instance belongs to another customer")
    return owned


def is_owner(who: Principal, owned: Owned) -> bool:
    """Whether it is theirs, whatever else they may be."""
    return (who.tenant_id, who.user_id) == (owned.tenant_id, owned.customer_id)


def require_staff(who: Principal) -> None:
    """Passes the tenant's admins and the platform's staff, before anything is looked at. Raises `Forbidden`."""
    if who.role == "customer":
        raise Forbidden("This is for the tenant's admins")
