"""The records that cloudsim stores, of servers, actions and keys, and the orders that create them."""

from datetime import datetime

import msgspec


class ServerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A server that exists. `locked`: whether an action is running on it."""

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
    #: Whether its first boot has written the files of user_data.
    disk_written: bool
    #: Faults at its creation: seconds before the agent starts, and whether it never starts.
    boot_delay_s: float
    boot_dead: bool
    #: The agent process that was started last.
    agent_pid: int | None
    agent_started: float | None


class PastServer(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the history, which has every server that ever existed."""

    id: int
    name: str
    labels: dict[str, str]
    created_at: str
    deleted_at: str | None


class ActionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An action on a server. `fail_with`: the error code that a fault has it end with."""

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
    """The effects of faults on an operation that is applied."""

    boot_delay_s: float = 0.0
    boot_dead: bool = False
    fail_with: str | None = None
    #: As `fail_with`, but only for the start of a created server.
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
