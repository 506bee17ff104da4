"""The boot file of a VPS: the instance and attempt that it was created for, and the one-time token to enrol with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from uuid import UUID

import msgspec

from hydracore.agent.errors import BootFileInvalid
from hydracore.json_input import JSON_ERRORS

#: Below the agent's root. Written by cloud-init from the user_data of the server.
BOOT_FILE = Path("etc/hydracore/agent.json")

#: A boot file has some 300 bytes; anything much larger is not one.
_SIZE_BYTES_MAX = 65536


class BootFile(msgspec.Struct, frozen=True, kw_only=True):
    control_plane_url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^/\s]+")]
    instance_id: UUID
    attempt: Annotated[int, msgspec.Meta(ge=1)]
    enrol_token: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]

    def __repr__(self) -> str:
        return f"BootFile(instance_id={self.instance_id}, attempt={self.attempt})"


def read_boot_file(root: Path) -> BootFile:
    """Read ROOT/etc/hydracore/agent.json. Raises `BootFileInvalid`, whose text never shows a value of the file."""
    path = root / BOOT_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BootFileInvalid(
            path, "no such file; cloud-init writes it from the server's user_data at the first boot"
        ) from None
    except OSError as error:
        raise BootFileInvalid(path, error.strerror or type(error).__name__) from error
    if len(content) > _SIZE_BYTES_MAX:
        raise BootFileInvalid(path, f"longer than {_SIZE_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(content, type=BootFile)
    except JSON_ERRORS as error:
        # msgspec names the field and the type it wants, never the value it found.
        raise BootFileInvalid(path, str(error)) from None
