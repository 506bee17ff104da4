"""The errors of the audit: what it cannot do, and why.

AuditError
├── NotInLog             the log has no such instance, tenant or event, or the instance not at that version or time
├── NoSeal               there is no seal to begin at
├── CustomerUnclear      no tenant has the customer, or several have
├── CopyContradicts      the database does not have the newest seal of the copy
├── CopyMissing          there are seals, but not the file of their copy
├── CopyEmpty            there are seals, but none in the file of their copy
├── ErasuresUnknown      the file that lists the erased customers cannot be read, or is not set
├── ErasureInterrupted   an erasure was begun, but not completed
├── ErasureNotRecorded   the key is destroyed, but the erasure could not be recorded in some streams
├── InstancesNotDeleted  the customer has instances that are not deleted
├── FileExists           the file to write exists already
├── NoRegularFile        the file to write is a device, a pipe or the like
├── ParquetMissing       pyarrow is not installed
├── ParquetBroken        pyarrow is installed, but cannot be loaded
├── NotAnExport          the file is no export, or one of a later version
└── RecordUnreadable     an export is damaged from some record on
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from hydracore.wording import plural

if TYPE_CHECKING:
    from events.seal import Seal

#: The most instances that an error names.
NAMED_MAX = 5


class AuditError(Exception):
    """Root of these errors. `str()` is shown to users."""


class NotInLog(AuditError):
    pass


class NoSeal(AuditError):
    def __init__(self) -> None:
        super().__init__("There is no seal yet: run `hydracore audit seal` to make the first")


class CustomerUnclear(AuditError):
    pass


class CopyContradicts(AuditError):
    """`made`: the seal that was made nevertheless; None where none was made."""

    def __init__(self, path: Path, number: int, made: Seal | None) -> None:
        super().__init__(
            f"Seal {number} in the database differs from that in {path}, or is missing: an older backup was restored, seals were "
            "removed, or the file is damaged. No further seals are copied: see docs/operations.md, Backup and restore"
        )
        self.made = made


class CopyMissing(AuditError):
    def __init__(self, path: Path) -> None:
        super().__init__(
            f"The database has seals, but HYDRACORE_SEAL_FILE, the file with their copy, does not exist: {path} "
            "(name another file with --seals, or set HYDRACORE_SEAL_FILE= to verify without a copy)"
        )


class CopyEmpty(AuditError):
    def __init__(self, path: Path) -> None:
        super().__init__(
            f"The database has seals, but {path}, the file with their copy, has none "
            "(name another file with --seals, or set HYDRACORE_SEAL_FILE= to verify without a copy)"
        )


class ErasuresUnknown(AuditError):
    """`path`: the list of erasures; None where it is not set."""

    def __init__(self, path: Path | None, reason: str) -> None:
        super().__init__(
            f"HYDRACORE_ERASURE_FILE, the file that lists erased customers, is not set, but {reason}"
            if path is None
            else f"{path}, the file that lists erased customers, cannot be read: {reason}"
        )


class ErasureNotRecorded(AuditError):
    """`failed`: the streams in which the erasure was not recorded, with the reasons."""

    def __init__(self, failed: Mapping[UUID, str], *, recorded: int) -> None:
        named = "; ".join(f"{stream} ({why})" for stream, why in islice(failed.items(), NAMED_MAX))
        more = "; ..." if len(failed) > NAMED_MAX else ""
        super().__init__(
            f"The keys are destroyed, and the erasure is recorded in {plural(recorded, 'instance')}, but could not be recorded in "
            f"{plural(len(failed), 'instance')}: {named}{more}. Find the cause with `hydracore audit verify`, then run this again"
        )
        self.failed = failed


class ErasureInterrupted(AuditError):
    """`status`: what is done for good, and what remains to be done."""

    def __init__(self, reason: str, status: str) -> None:
        super().__init__(f"{reason} ({status})")


class InstancesNotDeleted(AuditError):
    pass


class FileExists(AuditError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} already exists: choose another name, or use --force to replace it")


class NoRegularFile(AuditError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is not a regular file and is not replaced: choose another name")


class ParquetMissing(AuditError):
    def __init__(self) -> None:
        super().__init__("Parquet needs pyarrow, which is not installed: pip install 'hydracore[parquet]'")


class ParquetBroken(AuditError):
    def __init__(self, reason: str) -> None:
        super().__init__(f"pyarrow cannot be loaded ({reason}): it is damaged, or there is not enough memory")


class NotAnExport(AuditError):
    """`made_by`: the version that wrote it, where that is newer than this one."""

    def __init__(self, path: Path, *, made_by: str | None = None) -> None:
        newer_format = (
            None
            if made_by is None
            else f"{path} was exported by HydraCore {made_by}: verify it with that release or a later one"
        )
        super().__init__(newer_format or f"{path} is not a HydraCore export")


class RecordUnreadable(AuditError):
    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"Record {number} cannot be read: {what}")
        self.number = number
