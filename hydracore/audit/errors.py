"""What the audit cannot do because it was asked for something that is not there.

AuditError
|-- NothingThere   no such instance, or none yet at that version or moment
|-- NoSeal         there is no seal to begin at
`-- Unclear        the customer is nobody's, or several tenants'
"""

from __future__ import annotations


class AuditError(Exception):
    """Root. `str()` is shown to whoever asked."""


class NothingThere(AuditError):
    pass


class NoSeal(AuditError):
    def __init__(self) -> None:
        super().__init__("There is no seal yet")


class Unclear(AuditError):
    pass
