"""pyeventsourcing's append with its defaults: a new aggregate with one event, saved by an application on PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from uuid import uuid4

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate
from psycopg.conninfo import conninfo_to_dict


class Instance(Aggregate):
    """An aggregate with as many fields as our first event."""

    def __init__(  # noqa: PLR0917 - the library calls it with what it stored
        self,
        tenant_id: str,
        customer_id: str,
        idempotency_key: str,
        region_id: str,
        tier_id: str,
        preset_id: str,
        runtime_type: str,
        workload_type: str,
        capabilities: dict[str, bool],
        tier_name: str,
        agent_name: str,
    ) -> None:
        self.tenant_id = tenant_id
        self.customer_id = customer_id
        self.idempotency_key = idempotency_key
        self.region_id = region_id
        self.tier_id = tier_id
        self.preset_id = preset_id
        self.runtime_type = runtime_type
        self.workload_type = workload_type
        self.capabilities = capabilities
        self.tier_name = tier_name
        self.agent_name = agent_name


@contextmanager
def opened(database_url: str, *, threads: int) -> Generator[Application]:
    """An application with a connection for every thread. Everything else is the library's default."""
    place = conninfo_to_dict(database_url)
    application = Application(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": str(place["dbname"]),
            "POSTGRES_HOST": str(place["host"]),
            "POSTGRES_PORT": str(place["port"]),
            "POSTGRES_USER": str(place["user"]),
            "POSTGRES_PASSWORD": str(place["password"]),
            "POSTGRES_POOL_SIZE": str(threads),
        }
    )
    try:
        yield application
    finally:
        application.close()


def appends_per_s(application: Application, *, threads: int, seconds: float) -> float:
    """The number of aggregates per second that `threads` threads of this process save."""
    counts = [0] * threads
    began_s = time.perf_counter()

    def work(number: int) -> None:
        while time.perf_counter() < began_s + seconds:
            save(application, customer_id=f"customer-{counts[number] % 100}")
            counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - began_s)


def save(application: Application, *, customer_id: str) -> None:
    application.save(
        Instance(
            tenant_id="bench",
            customer_id=customer_id,
            idempotency_key=uuid4().hex,
            region_id="local",
            tier_id="starter",
            preset_id="personal_assistant",
            runtime_type="expressclaw",
            workload_type="agent",
            capabilities={"chat": True, "conversations": True, "skills": True, "updates": True},
            tier_name="Starter",
            agent_name="Ada",
        )
    )
