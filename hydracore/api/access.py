"""Checks which instances a caller may access (docs/api.md)."""

from __future__ import annotations

from typing import Protocol, TypeVar

from hydracore.api.errors import Forbidden, NotFound
from hydracore.auth import Principal

#: Also the answer for another tenant's instance: both answers must be the same in every byte.
ABSENT = "Instance not found"


class Owned(Protocol):
    """Anything that belongs to a customer of a tenant."""

    @property
    def tenant_id(self) -> str: ...

    @property
    def customer_id(self) -> str: ...


T = TypeVar("T", bound=Owned)


def require_access(who: Principal, owned: T | None) -> T:
    """Return `owned` if the caller is of the platform's staff, an admin of its tenant, or its owner.

    Raises `NotFound` where it is None or another tenant's, and `Forbidden` where it is another customer's.
    """
    if owned is None or (who.role != "platform" and who.tenant_id != owned.tenant_id):
        raise NotFound(ABSENT)
    if who.role == "customer" and who.user_id != owned.customer_id:
        raise Forbidden("This instance belongs to another customer")
    return owned


def is_owner(who: Principal, owned: Owned) -> bool:
    """Whether the caller is the owner, whatever their role is."""
    return (who.tenant_id, who.user_id) == (owned.tenant_id, owned.customer_id)


def require_staff(who: Principal) -> None:
    """Let the tenant's admins and the platform's staff pass, before anything is read. Raises `Forbidden` for others."""
    if who.role == "customer":
        raise Forbidden("Only the tenant's admins may do this")
