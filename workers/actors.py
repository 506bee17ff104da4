"""The Dramatiq actors. Each takes ids, reads the log, and does the work that is due. None takes a payload, and none is retried."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Final
from uuid import UUID

import dramatiq
import psycopg
import structlog
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware, MiddlewareError

from events.errors import MasterKeyWrong, StoreUnavailable
from events.keys import Keyring
from hydracore.db.direct import require_direct
from hydracore.db.error_text import one_line
from hydracore.settings import Settings, SettingsError
from workers import broker as b
from workers.action_polling import poll_actions
from workers.advance import advance
from workers.deps import Deps, open_deps
from workers.distributed_folding import LaneFolder
from workers.health import check_health
from workers.sweep import sweep

_log = structlog.get_logger(__name__)

#: The longest that opening or closing the dependencies may take.
OPEN_S_MAX: Final = 60.0

#: The most sweeps, and the most polls of actions, that run in one worker at the same time. More than one, as some may hang.
SWEEPS_MAX: Final = 4
POLLS_MAX: Final = 4

#: The longest that one call for an instance, a sweep or a poll may take. Then it is cancelled, its lock is released, and the next hint
#: starts again.
CALL_S_MAX: Final = 120.0


class NotBooted(MiddlewareError):
    """The worker could not start: opening its dependencies failed, for the reason in `__cause__`, or was given up."""


class DepsMiddleware(Middleware):
    """Opens the dependencies on the actors' event loop before the worker takes its first message."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self.settings = settings
        self._environ = environ
        self._stack = AsyncExitStack()
        self.deps: Deps | None = None
        self._opening: asyncio.Task[None] | None = None
        self._is_given_up = False

    def give_up(self) -> None:
        """Stop opening the dependencies, if that is under way, so that the worker does not start. May be called from any thread."""
        self._is_given_up = True
        if (opening := self._opening) is not None:
            opening.get_loop().call_soon_threadsafe(opening.cancel)

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002 - a hook
        try:
            self._run(self._open())
        except Exception as error:
            raise NotBooted from error
        if self.deps is None:
            raise NotBooted

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002 - a hook
        self._run(self._stack.aclose())

    async def _open(self) -> None:
        self._opening = asyncio.ensure_future(self._open_all())
        if self._is_given_up:
            self._opening.cancel()
        try:
            await self._opening
        except asyncio.CancelledError:
            if not self._is_given_up:
                raise
        finally:
            self._opening = None

    async def _open_all(self) -> None:
        deps = await self._stack.enter_async_context(open_deps(self.settings, self._environ))
        # In a pooler's session, a lock would outlive its worker and keep all others from the instance until that session ends.
        await require_direct(self.settings, self.settings.database_url)
        try:
            # With another master key, the enrol tokens of new servers would be refused.
            await Keyring(deps.pool, master_keys=self.settings.master_keys).check()
        except MasterKeyWrong as error:
            raise SettingsError((str(error),)) from None
        self.deps = deps

    def _run(self, work: Awaitable[None]) -> None:
        thread = get_event_loop_thread()
        assert thread is not None, "AsyncIO stands before this middleware"
        thread.run_coroutine(_within(OPEN_S_MAX, work))


def declare_actors(broker: RedisBroker, middleware: DepsMiddleware) -> None:
    """Declare all actors to the broker."""
    handlers = _HintHandlers(middleware)
    actors: dict[str, Callable[..., Awaitable[None]]] = {
        b.ADVANCE: handlers.advance,
        b.CHECK_HEALTH: handlers.check_health,
        b.POLL_ACTIONS: handlers.poll_actions,
        b.SWEEP: handlers.sweep,
        b.FOLD_LANES: handlers.fold_lanes,
    }
    for name, actor in actors.items():
        dramatiq.actor(actor_name=name, queue_name=b.QUEUE, broker=broker)(actor)


class _HintHandlers:
    """The actors of one worker. They share its dependencies, which are open once the worker has booted."""

    def __init__(self, middleware: DepsMiddleware) -> None:
        self._middleware = middleware
        #: A hint has several instances. Still, only as many instances are handled at a time as the worker has threads.
        self._slots = asyncio.Semaphore(middleware.settings.worker_threads)
        self._polls = asyncio.Semaphore(POLLS_MAX)
        self._sweeps = asyncio.Semaphore(SWEEPS_MAX)
        self._folder = LaneFolder(middleware.settings)

    async def advance(self, *instance_ids: str) -> None:
        await self._on_instances(advance, instance_ids)

    async def check_health(self, *instance_ids: str) -> None:
        await self._on_instances(check_health, instance_ids)

    async def poll_actions(self) -> None:
        await _run_limited(self._polls, lambda: poll_actions(self._deps))

    async def sweep(self) -> None:
        await _run_limited(self._sweeps, lambda: sweep(self._deps, dry_run=False))

    async def fold_lanes(self, name: str, generation: str) -> None:
        # No time limit here: folding ends by itself. Cancelled in the middle of a lane, it would start that lane again and again.
        await _run_and_log(self._folder.fold_for_hint(name, int(generation)), projection=name)

    @property
    def _deps(self) -> Deps:
        assert self._middleware.deps is not None, "the worker has booted"
        return self._middleware.deps

    async def _on_instances(self, work: Callable[[Deps, UUID], Awaitable[None]], texts: tuple[str, ...]) -> None:
        # A slow or failing instance does not affect the others.
        await asyncio.gather(*(self._on_instance(work, text) for text in texts))

    async def _on_instance(self, work: Callable[[Deps, UUID], Awaitable[None]], text: str) -> None:
        try:
            instance_id = UUID(str(text))
        except ValueError:
            _log.warning("hint_unreadable")
            return
        async with self._slots:
            await _run_within_limit(work(self._deps, instance_id), instance_id=str(instance_id))


async def _run_limited(slots: asyncio.Semaphore, work: Callable[[], Awaitable[object]]) -> None:
    """Run `work`, unless all `slots` are taken."""
    # Hints do not expire: those that have waited for a worker or for a slow provider come all at once. To run as often would show
    # nothing new, but take up threads and the provider's rate limit.
    if not slots.locked():
        async with slots:
            await _run_within_limit(work())


async def _within(limit_s: float, work: Awaitable[object]) -> None:
    async with asyncio.timeout(limit_s):
        await work


async def _run_within_limit(work: Awaitable[object], **facts: str) -> None:
    """Run an actor's work for `CALL_S_MAX` at most, and log its failure."""
    await _run_and_log(_within(CALL_S_MAX, work), **facts)


async def _run_and_log(work: Awaitable[object], **facts: str) -> None:
    """Run an actor's work, and log its failure. The work stays due, so another hint is sent for it."""
    try:
        await work
    except (StoreUnavailable, psycopg.OperationalError) as error:
        _log.warning("database_unavailable", error=one_line(error), **facts)
    except TimeoutError:
        _log.warning("actor_took_too_long", **facts)
    except Exception:  # noqa: BLE001 - a bug must not stop the worker, and the next hint starts again
        _log.exception("actor_failed", **facts)
