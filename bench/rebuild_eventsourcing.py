"""pyeventsourcing's projection catch-up with its defaults.

The library's own `ProjectionRunner` reads the log from its beginning. There is one row per aggregate in
the read model. Each event is processed with its tracking record in one transaction.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL

CATCH_UP_S_MAX = 120.0

#: Events of one aggregate, including the first: about as many as one of our instances has.
STEPS = 10


class Instance(Aggregate):
    def __init__(self, tenant_id: str, customer_id: str, tier_id: str) -> None:
        self.tenant_id = tenant_id
        self.customer_id = customer_id
        self.tier_id = tier_id
        self.status = "pending"

    class Moved(Aggregate.Event):
        status: str

    def move(self, status: str) -> None:
        self.trigger_event(self.Moved, status=status)


class InstanceView(PostgresTrackingRecorder):
    def __init__(self, datastore: PostgresDatastore, **kwargs: Any) -> None:
        super().__init__(datastore, **kwargs)
        self.sql_create_statements.append(
            SQL(
                "CREATE TABLE IF NOT EXISTS instance_view (id uuid PRIMARY KEY, version int NOT NULL, status text NOT NULL)"
            ).format()
        )

    def put(self, instance_id: UUID, version: int, status: str, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(
                "INSERT INTO instance_view VALUES (%s, %s, %s) ON CONFLICT (id)"
                " DO UPDATE SET version = excluded.version, status = excluded.status",
                (instance_id, version, status),
                prepare=True,
            )


class InstanceProjection(Projection[InstanceView]):
    name = "instances"

    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        status = getattr(domain_event, "status", "pending")
        self.view.put(domain_event.originator_id, domain_event.originator_version, status, tracking)


def catch_up_per_s(database_url: str, *, aggregates: int) -> float:
    """Events per second, from an empty read model to the end of a log of `aggregates`."""
    place = conninfo_to_dict(database_url)
    env = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(place["dbname"]),
        "POSTGRES_HOST": str(place["host"]),
        "POSTGRES_PORT": str(place["port"]),
        "POSTGRES_USER": str(place["user"]),
        "POSTGRES_PASSWORD": str(place.get("password", "")),
    }
    last = _write(env, aggregates)
    began_s = time.perf_counter()
    with ProjectionRunner(
        application_class=Application[UUID], projection_class=InstanceProjection, view_class=InstanceView, env=env
    ) as runner:
        runner.wait(last, timeout=CATCH_UP_S_MAX)
    return last / (time.perf_counter() - began_s)


def _write(env: dict[str, str], aggregates: int) -> int:
    """Write the log. Returns the number of its last notification."""
    application: Application[UUID] = Application(env=env)
    last = 0
    try:
        for number in range(aggregates):
            instance = Instance(tenant_id="bench", customer_id=f"customer-{number}", tier_id="starter")
            for step in range(STEPS - 1):
                instance.move(f"status-{step}")
            last = application.save(instance)[-1].notification.id
    finally:
        application.close()
    return last
