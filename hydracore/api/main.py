"""Runs the API in this process until a signal stops it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
import uvicorn
import uvloop

from events.errors import MasterKeyWrong
from events.keys import Keyring
from hydracore import catalogue as catalogues
from hydracore import logs
from hydracore.agent_client import AgentClient
from hydracore.api.app import Parts, create_app
from hydracore.api.heartbeat_reception import keep_recording
from hydracore.api.rate_limiter import RateLimiter
from hydracore.api.runtime import ASK_TIMEOUT_S
from hydracore.audit import erasing
from hydracore.audit.erasure_file import ErasureFile
from hydracore.audit.errors import ErasuresUnknown
from hydracore.backends import open_redis, open_store
from hydracore.catalogue import Catalogue
from hydracore.catalogue_file import CatalogueError
from hydracore.db.pool import open_pool
from hydracore.gc_tuning import freeze_and_collect_less_often
from hydracore.http_server import EmbeddedServer, uvicorn_config
from hydracore.settings import Settings, SettingsError
from hydracore.signals import stop_event
from projections.queries import Queries

#: Connections to PostgreSQL per process. Reads are coalesced and appends grouped, so few are enough.
POOL_SIZE: Final = 12

#: The most seconds for running requests to end after the signal to stop.
STOP_GRACE_S: Final = 5

_log = structlog.get_logger(__name__)


def run(settings: Settings) -> int:
    """Serve until a signal. Returns the exit code of the process.

    2: the catalogue is wrong, with a line for each problem. 3: the list of erased customers cannot be read, or the host
    to listen on cannot be looked up. Raises `SettingsError` where the master key is not this database's, and
    `DatabaseUnusable`.
    """
    logs.configure(settings.log_level)
    try:
        catalogue = catalogues.load(settings.catalogue, os.environ)
    except CatalogueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        # uvicorn would say only that a name is not known.
        socket.getaddrinfo(settings.api_host, None)
    except OSError as error:
        hint = f"{error.strerror}: check HYDRACORE_API_HOST"
        _log.error("api_host_unknown", host=settings.api_host, hint=hint)
        return 3
    try:
        uvloop.run(_serve(settings, catalogue))
    except ErasuresUnknown as error:
        _log.error("erasures_unknown", hint=str(error))
        return 3
    except MasterKeyWrong as error:
        raise SettingsError((str(error),)) from None
    return 0


async def _serve(settings: Settings, catalogue: Catalogue) -> None:
    for region, reason in catalogue.unavailable_regions.items():
        _log.warning("region_unavailable", region=region, reason=reason)
    async with open_parts(settings, catalogue) as parts:
        config = server_config(parts)
        freeze_and_collect_less_often()
        stop = stop_event()
        server = EmbeddedServer(config, on_started=lambda: _log.info("api_started", host=config.host, port=config.port))
        background = [
            asyncio.create_task(keep_recording(parts.pool)),
            asyncio.create_task(_stop_server(server, after=stop)),
        ]
        try:
            async with _served_to_agents(config, settings.api_port_for_agents, until=stop):
                await server.serve()
        finally:
            for task in background:
                task.cancel()
            _log.info("stopped")


async def _stop_server(server: EmbeddedServer, *, after: asyncio.Event) -> None:
    await after.wait()
    server.should_exit = True


def server_config(parts: Parts) -> uvicorn.Config:
    """The configuration of the server, at the address of the settings."""
    return uvicorn_config(
        create_app(parts),
        host=parts.settings.api_host,
        port=parts.settings.api_port,
        timeout_graceful_shutdown=STOP_GRACE_S,
    )


@asynccontextmanager
async def _served_to_agents(config: uvicorn.Config, port: int | None, *, until: asyncio.Event) -> AsyncGenerator[None]:
    """Serve the same application on `port` too, unless that is None or the port of `config`.

    Both servers stop at the same time. One after the other, they would take twice the time that a process gets to stop.
    """
    if port in (None, config.port):
        yield
        return
    second = EmbeddedServer(
        uvicorn_config(config.app, host=config.host, port=port, timeout_graceful_shutdown=STOP_GRACE_S)
    )
    serving = asyncio.create_task(second.serve())
    ending = asyncio.create_task(_stop_server(second, after=until))
    try:
        yield
    finally:
        ending.cancel()
        second.should_exit = True
        await serving


@asynccontextmanager
async def open_parts(settings: Settings, catalogue: Catalogue) -> AsyncGenerator[Parts]:
    """Open everything that the application needs, and close it in reverse order at the end.

    Raises `DatabaseUnusable`, `ErasuresUnknown` and `MasterKeyWrong`.
    """
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            open_pool(
                settings.database_url,
                role=settings.database_role,
                application="hydracore-api",
                size=POOL_SIZE,
                prepared=settings.database_prepared,
                with_answer_timeout=True,
            )
        )
        if settings.erasure_file is None:
            await erasing.require_no_erasures(pool)
        else:
            await erasing.destroy_restored_keys(pool, ErasureFile(settings.erasure_file))
        keyring = Keyring(pool, master_keys=settings.master_keys)
        await keyring.check()
        redis = await stack.enter_async_context(open_redis(settings.redis_url))
        store = await stack.enter_async_context(open_store(pool, redis))
        limiter = None
        if settings.rate_limit_per_minute:
            limiter = RateLimiter(redis, per_minute=settings.rate_limit_per_minute)
            stack.push_async_callback(limiter.aclose)
        agent_client = await stack.enter_async_context(AgentClient(ASK_TIMEOUT_S))
        yield Parts(
            settings=settings,
            catalogue=catalogue,
            pool=pool,
            store=store,
            queries=Queries(pool),
            keyring=keyring,
            redis=redis,
            agent_client=agent_client,
            limiter=limiter,
        )
