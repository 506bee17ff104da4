"""What cloudsim remembers: servers, actions and keys, and the orders that make them."""

from datetime import datetime

import msgspec


class ServerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A server that exists. `locked` means that an action is at work on it."""

    id: int
    name: str
    status: str
    created_at: datetime
    server_type: str
    location: str
    image: str
    ipv4: str | None
    ipv6: str | None
    labels: dict[str, str]
    locked: bool
    #: Its first boot has written the files of user_data.
    disk_written: bool
    #: Told at its creation: the agent starts this late, or never.
    boot_delay_s: float
    boot_dead: bool
    #: The agent process that was started last.
    agent_pid: int | None
    agent_started: float | None


class PastServer(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the history: every server that ever was."""

    id: int
    name: str
    labels: dict[str, str]
    created_at: str
    deleted_at: str | None


class ActionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Something done to a server. `fail_with` is the error code that it was told to end with."""

    id: int
    server_id: int
    command: str
    status: str
    started_at: datetime
    finished_at: datetime | None
    fail_with: str | None


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An SSH key of the project."""

    id: int
    name: str
    fingerprint: str
    public_key: str
    labels: dict[str, str]
    created_at: datetime


class Effects(msgspec.Struct, frozen=True, kw_only=True):
    """What faults do to an operation that is applied."""

    boot_delay_s: float = 0.0
    boot_dead: bool = False
    fail_with: str | None = None
    #: The error of a created server's start alone.
    fail_start_with: str | None = None


class NewServer(msgspec.Struct, frozen=True, kw_only=True):
    """A checked order for a server."""

    name: str
    server_type: str
    location: str
    image: str
    labels: dict[str, str]
    user_data: str
    start: bool
    want_ipv4: bool
    want_ipv6: bool
    effects: Effects
