"""A server's disk: a folder, on which the first boot writes the files that user_data asks for, as cloud-init would.

It understands `#cloud-config` with one JSON document, and `write_files` with `path`, `content` and
`permissions`. Any other user_data is ignored, as on a real server whose image has no agent.
"""

import errno
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

HEADER: Final = "#cloud-config\n"

#: A server whose disk has this file has an agent, and boots it.
AGENT_FILE: Final = "etc/hydracore/agent.json"
AGENT_LOG: Final = "var/log/hydracore-agent.log"

#: Where the disks are in cloudsim's home, by the servers' ids.
DISKS: Final = "servers"

FILES_MAX: Final = 100

#: Errors of a path that no later try can mend.
_PERMANENT_PATH_ERRORS: Final = frozenset({errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP})


class _File(msgspec.Struct):
    path: str
    content: str = ""
    permissions: str = "0644"


class _CloudConfig(msgspec.Struct):
    write_files: list[_File] = []


class UserDataError(Exception):
    """user_data asks for something that cannot be done. Its text is not quoted: it holds a token."""


def write_disk(root: Path, user_data: str) -> None:
    """Make the disk. Raises `UserDataError`."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not user_data.startswith(HEADER):
        return
    try:
        files = msgspec.json.decode(user_data[len(HEADER) :], type=_CloudConfig).write_files
    except msgspec.DecodeError:
        raise UserDataError("user_data is not valid cloud-config JSON") from None
    if len(files) > FILES_MAX:
        raise UserDataError(f"more than {FILES_MAX} files")
    for file in files:
        _write_file(_path_on_disk(root, file.path), file)


def has_agent(root: Path) -> bool:
    return (root / AGENT_FILE).is_file()


def remove_disk(root: Path) -> None:
    """Remove a disk, also one that is partly removed. Raises `OSError` if any of it stays, as it holds secrets."""
    shutil.rmtree(root)


def _path_on_disk(root: Path, path: str) -> Path:
    """The real path of `path` on a server's disk. Raises `UserDataError` for one that may lead outside of the disk."""
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts or "\0" in path:
        raise UserDataError("a path is not absolute, or contains ..")
    return root.joinpath(*pure.parts[1:])


def _write_file(path: Path, file: _File) -> None:
    try:
        mode = int(file.permissions, 8) & 0o777
    except ValueError:
        raise UserDataError("permissions are not octal") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    except OSError as error:
        if error.errno not in _PERMANENT_PATH_ERRORS:
            raise  # A full disk, say: there may be room later.
        raise UserDataError("a path cannot be that of a file") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(file.content)
