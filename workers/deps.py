"""The dependencies of the workers, which each process opens once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import UUID, uuid4

from psycopg_pool import AsyncConnectionPool

from events.record import Origin
from events.store import EventStore
from hydracore import catalogue as catalogues
from hydracore import clock
from hydracore.agent_client import AgentClient
from hydracore.backends import open_redis, open_store
from hydracore.catalogue import Catalogue
from hydracore.db.pool import open_pool
from hydracore.settings import Settings
from workers.locks import InstanceLocks
from workers.providers.base import Provider
from workers.providers.hetzner import HetznerProvider
from workers.work_schedule import WorkSchedule

#: The connections of one worker process. A few are enough, because steps wait for providers far more than for the database.
POOL_SIZE = 8

#: The longest that a request to an agent may take.
AGENT_TIMEOUT_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Deps:
    settings: Settings
    catalogue: Catalogue
    pool: AsyncConnectionPool
    store: EventStore
    schedule: WorkSchedule
    locks: InstanceLocks
    providers: Mapping[str, Provider]
    agent_client: AgentClient

    def now_ms(self) -> int:
        """Milliseconds since 1970 by this machine's clock. All times that the workers record are by this clock."""
        return clock.now_ms()

    def origin(self, instance_id: UUID, *, actor: str = "worker") -> Origin:
        """The origin of a worker's command: with a new command id, and with the instance as its correlation id."""
        return Origin(actor=actor, command_id=uuid4(), correlation_id=instance_id)


@asynccontextmanager
async def open_deps(settings: Settings, environ: Mapping[str, str]) -> AsyncGenerator[Deps]:
    """Open all dependencies, and close them at the end in reverse order. Raises `CatalogueError` and `DatabaseUnusable`."""
    catalogue = catalogues.load(settings.catalogue, environ)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            open_pool(
                settings.database_url,
                role=settings.database_role,
                application="hydracore-worker",
                size=POOL_SIZE,
                prepared=settings.database_prepared,
            )
        )
        redis = await stack.enter_async_context(open_redis(settings.redis_url))
        store = await stack.enter_async_context(open_store(pool, redis))
        locks = InstanceLocks(settings.database_url, role=settings.database_role)
        stack.push_async_callback(locks.close)
        providers = _providers(settings, catalogue)
        for provider in providers.values():
            stack.push_async_callback(provider.aclose)
        agent_client = await stack.enter_async_context(AgentClient(AGENT_TIMEOUT_S, connections_kept=0))
        yield Deps(
            settings=settings,
            catalogue=catalogue,
            pool=pool,
            store=store,
            schedule=WorkSchedule(pool),
            locks=locks,
            providers=providers,
            agent_client=agent_client,
        )


def _providers(settings: Settings, catalogue: Catalogue) -> dict[str, Provider]:
    return {
        name: HetznerProvider(
            endpoint=access.endpoint,
            token=access.token,
            timeout_s=settings.provider_timeout_s,
            ssh_public_key=settings.ssh_public_key or None,
            ssh_key_name=f"hc-{settings.installation}",
        )
        for name, access in catalogue.usable_providers.items()
    }
