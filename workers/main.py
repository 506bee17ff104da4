"""The processes: relay and worker, which run until they are told to stop, and the sweep, which runs once."""

from __future__ import annotations

import asyncio
import os
import time

import dramatiq
import structlog
import uvloop

from events.errors import StoreUnavailable
from hydracore import logs
from hydracore.audit.sealing import keep_sealing
from hydracore.backends import open_redis
from hydracore.db.pool import open_pool
from hydracore.gc_tuning import freeze_and_collect_less_often
from hydracore.settings import Settings
from hydracore.signals import run_to_completion, run_until_signal, signal_waiter
from projections.followed import followed_projections
from projections.follower import Follower
from workers.actors import DepsMiddleware, NotBooted, declare_actors
from workers.broker import HintSender, redis_broker
from workers.clock_skew import watch_clock_skew
from workers.deps import open_deps
from workers.head_watcher import HeadWatcher, wait_for_events
from workers.reconciler import Reconciler
from workers.relay import Relay
from workers.sweep import sweep
from workers.sweep_findings import SweepReport

#: How often an idle worker thread checks whether it has to stop, and how long a worker that stops waits for running actors.
WORKER_TIMEOUT_MS = 1_000
STOP_MS_MAX = 8_000

RELAY_POOL_SIZE = 4

#: The shortest and the longest pause of a follower between two looks at the log. The shortest lets events gather to a batch. In
#: between, it pauses for as long as its last look took: the busier the machine, the more it leaves to work that users wait for.
FOLLOW_S = 0.005
FOLLOW_S_MAX = 0.1

#: The pause of a follower after an unexpected error, which it logs, before it tries again.
RECOVER_S = 30.0

_log = structlog.get_logger(__name__)


def run_relay(settings: Settings) -> None:
    """Follow the log and reconcile until a signal comes. Raises `DatabaseUnusable`."""
    logs.configure(settings.log_level)
    if not run_until_signal(_relay(settings), loop_factory=uvloop.new_event_loop):
        _log.info("stopped")


def run_worker(settings: Settings) -> None:
    """Process hints until a signal comes.

    Raises `SettingsError` if the master key is not that of this database, `CatalogueError` and `DatabaseUnusable`.
    """
    logs.configure(settings.log_level)
    middleware = DepsMiddleware(settings, os.environ)
    broker = redis_broker(settings.redis_url, middleware)
    declare_actors(broker, middleware)
    worker = dramatiq.Worker(broker, worker_threads=settings.worker_threads, worker_timeout=WORKER_TIMEOUT_MS)
    with signal_waiter(middleware.give_up) as wait_for_signal:
        try:
            worker.start()
            freeze_and_collect_less_often()
            _log.info("worker_started", threads=settings.worker_threads)
            if settings.is_public_url_unencrypted:
                hint = "agents fetch their secrets unencrypted: use https:// in HYDRACORE_PUBLIC_URL"
                _log.warning("public_url_open", hint=hint)
            wait_for_signal()
        except NotBooted as error:
            if error.__cause__ is not None:
                raise error.__cause__ from None
        finally:
            worker.stop(timeout=STOP_MS_MAX)
            broker.close()


def run_sweep(settings: Settings, *, dry_run: bool, remove_unaccounted: bool) -> SweepReport:
    """Compare the providers with the log once. Raises the errors of `open_deps` and `with_retries`."""
    logs.configure(settings.log_level)

    async def once() -> SweepReport:
        async with open_deps(settings, os.environ) as deps:
            return await sweep(deps, dry_run=dry_run, remove_unaccounted=remove_unaccounted)

    return run_to_completion(once())


async def _relay(settings: Settings) -> None:
    hints = HintSender(settings.redis_url)
    redis = open_redis(settings.redis_url)
    try:
        async with (
            redis,
            open_pool(
                settings.database_url,
                role=settings.database_role,
                application="hydracore-relay",
                size=RELAY_POOL_SIZE,
                prepared=settings.database_prepared,
            ) as pool,
            asyncio.TaskGroup() as group,
        ):
            watcher = HeadWatcher(pool, redis)
            group.create_task(watcher.run())
            group.create_task(Relay(pool, hints, watcher).run())
            group.create_task(Reconciler(pool, hints, settings).run())
            group.create_task(keep_sealing(pool, settings))
            group.create_task(watch_clock_skew(pool))
            group.create_task(follow(Follower(pool, *followed_projections()), watcher))
            freeze_and_collect_less_often()
            _log.info("relay_started")
    finally:
        hints.close()


async def follow(follower: Follower, watcher: HeadWatcher) -> None:
    """Keep the followed projections up to date with the log, for ever. Their errors do not stop the relay's hints and duties."""
    has_checkpoints = False
    while True:
        new_events, looked_s = watcher.new_events, 0.0
        try:
            if not has_checkpoints:
                await follower.create_checkpoints()
                has_checkpoints = True
            began_s = time.monotonic()
            await follower.catch_up()
            looked_s = time.monotonic() - began_s
        except StoreUnavailable as error:
            _log.warning("follower_waits", reason=str(error))
        except Exception:  # noqa: BLE001 - a projection's bug must not stop the relay
            _log.exception("follower_failed")
            await asyncio.sleep(RECOVER_S)
        await asyncio.sleep(min(max(FOLLOW_S, looked_s), FOLLOW_S_MAX))
        await wait_for_events(new_events)
