"""What really happened: reads the log as its owner, and cloudsim's record of every server that ever existed."""

import itertools
from typing import Any
from uuid import UUID

import psycopg
from psycopg.sql import Composed

from tests.cloudsim_fixtures import CloudsimProcess


class Records:
    def __init__(self, database_url: str, cloudsim: CloudsimProcess) -> None:
        self.database_url = database_url
        self.cloudsim = cloudsim
        self._connection: psycopg.Connection | None = None

    def close_records(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def rows(self, statement: str | Composed, *parameters: object) -> list[tuple[Any, ...]]:
        """What the database's owner sees."""
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.database_url, autocommit=True)
        try:
            return self._connection.execute(statement, parameters).fetchall()  # type: ignore[arg-type]
        except psycopg.OperationalError:
            # The database was restarted since.
            assert self._connection.closed
            return self.rows(statement, *parameters)

    def events(self, instance_id: UUID) -> list[dict[str, Any]]:
        """The payloads of the instance's events so far."""
        found = self.rows("SELECT payload FROM event WHERE stream_id = %s ORDER BY version", instance_id)
        return [row[0] for row in found]

    def types(self, instance_id: UUID) -> list[str]:
        return [event["type"] for event in self.events(instance_id)]

    def has_happened(self, instance_id: UUID, type_: str, **facts: object) -> bool:
        """Whether an event of this type and with these facts is in the log."""
        return any(event["type"] == type_ and facts.items() <= event.items() for event in self.events(instance_id))

    def logged_server_id(self, instance_id: UUID) -> str:
        """The id of the last server in the log."""
        return [event["server_id"] for event in self.events(instance_id) if event["type"] == "server_created"][-1]

    def servers(self, instance_id: UUID) -> list[dict[str, Any]]:
        """Every server that the instance ever had, oldest first."""
        history = self.cloudsim.call("GET", "/_sim/history")["servers"]
        found = [server for server in history if server["name"] == f"hc-{instance_id}"]
        assert [server["id"] for server in found] == [
            server["id"] for server in history if server["labels"].get("hc-instance") == str(instance_id)
        ], "names and labels agree"
        return found

    def server(self, instance_id: UUID) -> dict[str, Any]:
        """The one server that the instance has now. Fails where it ever had two at a time."""
        living = [server for server in self._one_at_a_time(instance_id) if server["deleted_at"] is None]
        assert len(living) == 1, living
        return living[0]

    def assert_no_server(self, instance_id: UUID) -> None:
        """It has none now, and never had two at a time."""
        assert not [server for server in self._one_at_a_time(instance_id) if server["deleted_at"] is None]

    def _one_at_a_time(self, instance_id: UUID) -> list[dict[str, Any]]:
        servers = self.servers(instance_id)
        for earlier, later in itertools.pairwise(servers):
            assert earlier["deleted_at"] is not None, servers
            assert earlier["deleted_at"] <= later["created_at"], servers
        return servers
