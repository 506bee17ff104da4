"""The list of erased customers, outside the database: they stay erased, whatever backup is restored.

An erasure is written here first. If a restore brings the key of a listed customer back, it is destroyed
again: by `db migrate`, which has to follow every restore, and by every API process before it serves.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import msgspec

from hydracore.audit.errors import ErasuresUnknown
from hydracore.audit.jsonl_file import JsonLinesFile


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """`by`: who gave the order."""

    tenant_id: str
    customer_id: str
    ordered_at: datetime
    by: str

    @property
    def customer(self) -> tuple[str, str]:
        return self.tenant_id, self.customer_id


class ErasureFile(JsonLinesFile[Erasure]):
    def __init__(self, path: Path) -> None:
        super().__init__(path, Erasure)

    def erasures(self, *, must_exist: bool = False) -> dict[tuple[str, str], Erasure]:
        """All erasures by tenant and customer; none where there is no file. `must_exist`: whether that is an error.

        Raises `ErasuresUnknown` where the file cannot be read or is damaged, and where its directory is
        missing, as with a volume that is not mounted: without the list, erased customers would be served.
        """
        try:
            return {erasure.customer: erasure for erasure in self.read()}
        except FileNotFoundError:
            if not self.path.parent.is_dir():
                raise ErasuresUnknown(self.path, f"there is no directory {self.path.parent}") from None
            if must_exist:
                raise ErasuresUnknown(self.path, "it does not exist, but the database has erased customers") from None
            return {}
        except OSError as error:
            raise ErasuresUnknown(self.path, error.strerror or str(error)) from None

    def parse(self, line: bytes) -> Erasure | None:
        """The erasure in a line; None where the line is incomplete.

        Raises `ErasuresUnknown` for a damaged line that ends as a complete one does: it named an erased customer.
        """
        erasure = super().parse(line)
        if erasure is None and line.rstrip().endswith(b"}"):
            raise ErasuresUnknown(self.path, "a line is damaged")
        return erasure
