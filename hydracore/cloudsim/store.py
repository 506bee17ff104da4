"""Stores cloudsim's state in one SQLite file. A change is one transaction, so a kill loses all of it or nothing.

`synchronous=NORMAL` in WAL mode loses nothing when the process dies. Only a crash of the machine may
lose the latest changes, and that ends the agents, too.
"""

import json
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final, cast

from hydracore.cloudsim.problems import already_used
from hydracore.cloudsim.records import ActionRecord, KeyRecord, NewServer, PastServer, ServerRecord
from hydracore.cloudsim.rows import action_of, key_of, past_of, server_of
from hydracore.sql import named_blocks

_SQL: Final = named_blocks(Path(__file__).with_name("store.sql"))
_SCHEMA: Final = Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")

#: Servers get addresses from 127.32.0.0/12. Each home begins at a random one, so that two cloudsims
#: rarely share addresses.
ADDRESS_BASE: Final = int(IPv4Address("127.32.0.0"))
ADDRESS_COUNT: Final = 2**20 - 2


class Store:
    """`now` is a clock in UTC. `pick` returns a random number below its argument; it is used once per home."""

    def __init__(self, path: Path, *, now: Callable[[], datetime], pick: Callable[[int], int]) -> None:
        self._now = now
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(_SCHEMA)
        self._execute("write_address_offset", value=pick(ADDRESS_COUNT))
        self._address_offset = cast("int", self._rows("read_address_offset")[0]["value"])

    def close(self) -> None:
        self._database.close()

    # Servers

    def create_server(self, order: NewServer) -> tuple[ServerRecord, list[ActionRecord]]:
        """A new server with the actions that bring it up. Raises `ApiError` when the name is taken."""
        with self._transaction():
            server_id = self._write_unique(
                "insert_server",
                "name",
                name=order.name,
                status="initializing",
                created_at=self._now_text(),
                server_type=order.server_type,
                location=order.location,
                image=order.image,
                labels=json.dumps(order.labels),
                user_data=order.user_data,
                boot_delay_s=order.effects.boot_delay_s,
                boot_dead=int(order.effects.boot_dead),
            )
            host = (self._address_offset + server_id) % ADDRESS_COUNT + 1
            ipv4 = str(IPv4Address(ADDRESS_BASE + host)) if order.want_ipv4 else None
            ipv6 = f"2001:db8:{host >> 16:x}:{host & 0xFFFF:x}::/64" if order.want_ipv6 else None
            self._execute("set_addresses", id=server_id, ipv4=ipv4, ipv6=ipv6)
            effects = order.effects
            actions = [self._insert_action(server_id, "create_server", effects.fail_with)]
            if order.start:
                actions.append(
                    self._insert_action(server_id, "start_server", effects.fail_with or effects.fail_start_with)
                )
        server = self.server(server_id)
        assert server is not None
        return server, actions

    def server(self, server_id: int) -> ServerRecord | None:
        rows = self._rows("read_server", id=server_id)
        return server_of(rows[0]) if rows else None

    def servers(self) -> list[ServerRecord]:
        """All servers that exist, oldest first."""
        return [server_of(row) for row in self._rows("read_servers")]

    def history(self) -> list[PastServer]:
        """All servers that ever existed, oldest first."""
        return [past_of(row) for row in self._rows("read_history")]

    def user_data(self, server_id: int) -> str:
        return cast("str", self._rows("read_user_data", id=server_id)[0]["user_data"])

    def update_server(self, server_id: int, *, name: str | None, labels: dict[str, str] | None) -> None:
        """Raises `ApiError` when the name is taken."""
        with self._transaction():
            if name is not None:
                self._write_unique("set_name", "name", id=server_id, name=name)
            if labels is not None:
                self._execute("set_labels", id=server_id, labels=json.dumps(labels))

    def set_disk_written(self, server_id: int) -> None:
        self._execute("set_disk_written", id=server_id)

    def set_agent(self, server_id: int, *, pid: int | None, started: float | None) -> None:
        """Remember the agent process of a server; `started` tells it from a later process of the same pid."""
        self._execute("set_agent", id=server_id, pid=pid, started=started)

    def mark_deleted(self, server_id: int) -> None:
        """Mark the server as deleted, end its actions, and erase its user_data, which holds a token."""
        with self._transaction():
            self._execute("mark_deleted", id=server_id, now=self._now_text())
            self._execute("finish_actions", id=server_id, now=self._now_text())

    # Actions

    def begin_action(self, server_id: int, command: str, *, status: str | None, fail_with: str | None) -> ActionRecord:
        """Start an action. An action that will fail leaves the server's status as it is."""
        with self._transaction():
            if status is not None and fail_with is None:
                self._execute("set_status", id=server_id, status=status)
            return self._insert_action(server_id, command, fail_with)

    def finish_actions(self, server_id: int, *, status: str | None) -> None:
        """End all running actions of a server, and set its status unless that is None."""
        with self._transaction():
            if status is not None:
                self._execute("set_status", id=server_id, status=status)
            self._execute("finish_actions", id=server_id, now=self._now_text())

    def action(self, action_id: int) -> ActionRecord | None:
        rows = self._rows("read_action", id=action_id)
        return action_of(rows[0]) if rows else None

    def server_actions(self, server_id: int) -> list[ActionRecord]:
        """All actions of a server, oldest first."""
        return [action_of(row) for row in self._rows("read_server_actions", id=server_id)]

    # Keys

    def create_key(self, *, name: str, fingerprint: str, public_key: str, labels: dict[str, str]) -> KeyRecord:
        """Raises `ApiError` when the name or the key exists already."""
        key_id = self._write_unique(
            "insert_key",
            "public_key",
            name=name,
            fingerprint=fingerprint,
            public_key=public_key,
            labels=json.dumps(labels),
            now=self._now_text(),
        )
        key = self.key(key_id)
        assert key is not None
        return key

    def key(self, key_id: int) -> KeyRecord | None:
        rows = self._rows("read_key", id=key_id)
        return key_of(rows[0]) if rows else None

    def ssh_keys(self) -> list[KeyRecord]:
        return [key_of(row) for row in self._rows("read_keys")]

    def update_key(self, key_id: int, *, name: str | None, labels: dict[str, str] | None) -> None:
        """Raises `ApiError` when the name is taken."""
        with self._transaction():
            if name is not None:
                self._write_unique("set_key_name", "name", id=key_id, name=name)
            if labels is not None:
                self._execute("set_key_labels", id=key_id, labels=json.dumps(labels))

    def delete_key(self, key_id: int) -> None:
        self._execute("delete_key", id=key_id)

    # The file

    def _insert_action(self, server_id: int, command: str, fail_with: str | None) -> ActionRecord:
        action_id = self._write_unique(
            "insert_action", "id", server_id=server_id, command=command, now=self._now_text(), fail_with=fail_with
        )
        return action_of(self._rows("read_action", id=action_id)[0])

    def _write_unique(self, statement: str, unique_field: str, **values: Any) -> int:
        """Run a statement that may meet a unique index; returns the id of an inserted row."""
        try:
            number = self._database.execute(_SQL[statement], values).lastrowid
        except sqlite3.IntegrityError:
            raise already_used(unique_field) from None
        return number or 0

    def _execute(self, statement: str, **values: Any) -> None:
        self._database.execute(_SQL[statement], values)

    def _rows(self, statement: str, **values: Any) -> Sequence[sqlite3.Row]:
        try:
            return self._database.execute(_SQL[statement], values).fetchall()
        except OverflowError:
            # A number from a path that is too large for the database: no row has it.
            return []

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _now_text(self) -> str:
        return self._now().isoformat()
