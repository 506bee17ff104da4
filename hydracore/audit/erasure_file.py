"""The list of erased customers outside the database: whatever is restored, and however old it is, they stay erased.

An erasure is written here before anything else is done, and taken up again wherever a key of somebody who is listed shows up:
by `db migrate`, which belongs behind every restore, and by every API process before it serves.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import msgspec

from hydracore.audit.errors import ErasuresUnknown
from hydracore.audit.lines_file import LinesFile


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """`by`: who gave the order."""

    tenant_id: str
    customer_id: str
    ordered_at: datetime
    by: str

    @property
    def customer(self) -> tuple[str, str]:
        return self.tenant_id, self.customer_id


class ErasureFile(LinesFile[Erasure]):
    def __init__(self, path: Path) -> None:
        super().__init__(path, Erasure)

    def known(self, *, must_be_there: bool = False) -> dict[tuple[str, str], Erasure]:
        """All erasures by tenant and customer; none where there is no file yet. `must_be_there`: somebody was erased already.

        Raises `ErasuresUnknown` where it cannot be read or is damaged, and where its directory is not there, as of a volume
        that is not mounted: not knowing who was erased is no reason to serve everybody.
        """
        try:
            return {erasure.customer: erasure for erasure in self.read()}
        except FileNotFoundError:
            if not self.path.parent.is_dir():
                raise ErasuresUnknown(self.path, f"there is no directory {self.path.parent}") from None
            if must_be_there:
                raise ErasuresUnknown(self.path, "it does not exist, but the database has erased customers") from None
            return {}
        except OSError as error:
            raise ErasuresUnknown(self.path, error.strerror or str(error)) from None

    def parse(self, line: bytes) -> Erasure | None:
        """As of any such file, but a line that ends as an erasure does, and is none, names somebody who was erased."""
        erasure = super().parse(line)
        if erasure is None and line.rstrip().endswith(b"}"):
            raise ErasuresUnknown(self.path, "a line is damaged")
        return erasure
