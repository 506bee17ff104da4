"""Keeps one runtime running with the wanted configuration, and knows its state."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

import structlog

from hydracore.agent import VERSION
from hydracore.agent.backoff import Backoff
from hydracore.agent.chats import NotServing, OpenChat, Question
from hydracore.agent.errors import RuntimeFailed
from hydracore.agent.messages import Ignored, Level, ReportedError, Versions
from hydracore.agent.runtime import Runtime, RuntimeConfig, RuntimeKind
from hydracore.waiting import run_until

_log = structlog.get_logger(__name__)

RESTART_BASE_S = 0.5
RESTART_CAP_S = 60.0

#: The longest that `restart` waits for the runtime to start. It takes longer only if something is wrong.
START_S_MAX = 5.0

#: A run that lasted this long was healthy: its failure is a new one, and the backoff starts from its shortest wait.
STABLE_RUN_S = 60.0


class _Run(NamedTuple):
    runtime: Runtime
    config: RuntimeConfig


class Supervisor:
    """Call `configure`, then run `run` as a task. `configure`, `drain` and `interrupt_chats` may be called at any
    time.

    `report` is called once when the runtime fails in a new way, and once when it serves again.
    `monotonic` returns seconds.
    """

    def __init__(
        self,
        *,
        runtimes: Mapping[str, RuntimeKind],
        report: Callable[[Level, str], object],
        monotonic: Callable[[], float],
    ) -> None:
        self._wanted: RuntimeConfig | None = None
        self._runtimes = runtimes
        self._report = report
        self._monotonic = monotonic
        self._changed = asyncio.Event()
        self._serving = asyncio.Event()
        #: Set when a start has succeeded or failed.
        self._start_attempted = asyncio.Event()
        self._run: _Run | None = None
        self._draining = False
        self._backoff = Backoff(base_s=RESTART_BASE_S, cap_s=RESTART_CAP_S)
        self._failure: ReportedError | None = None

    def configure(self, config: RuntimeConfig) -> None:
        """Run with this configuration from now on. A running runtime switches to it, or is restarted if it cannot.

        Raises `RuntimeFailed` for a configuration that cannot be used, whether a runtime runs or not;
        then the one before stays wanted. The first configuration has none before it, so it is not
        checked here, and fails when it is run.
        """
        if config == self._wanted:
            return
        if self._run is not None and config.type == self._run.config.type and self._run.runtime.apply(config):
            self._run = _Run(self._run.runtime, config)
            _log.info("configuration_applied", config_version=config.version)
        else:
            if self._wanted is not None:
                self._kind(config).check(config)
            self._changed.set()
        self._wanted = config

    async def restart(self, *, drain_s: float) -> bool:
        """Stop the runtime once its chats are over, or after `drain_s`, and start it anew.

        Waits until the start has succeeded or failed, at most `START_S_MAX`. Returns whether no chat was cut short.
        """
        drained = True
        if self._run is not None:
            runtime = self._run.runtime
            runtime.drain()
            try:
                async with asyncio.timeout(drain_s):
                    await runtime.wait_until_idle()
            except TimeoutError:
                drained = False
        self._start_attempted.clear()
        self._changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_S_MAX):
                await self._start_attempted.wait()
        return drained

    def drain(self) -> int:
        """Take no new chats, also after a restart of the runtime. Returns how many are still open."""
        self._draining = True
        if self._run is not None:
            self._run.runtime.drain()
        return self.active_connections

    async def interrupt_chats(self) -> None:
        """Take no new chats, and end the open ones. When this returns, what they cost is in the ledger.

        Cancelling this ends the wait only: the chats end all the same.
        """
        self._draining = True
        if self._run is not None:
            await self._run.runtime.interrupt_chats()

    async def wait_until_serving(self) -> None:
        """Wait until a runtime serves."""
        await self._serving.wait()

    @property
    def is_serving(self) -> bool:
        return self._run is not None

    @property
    def wanted_config(self) -> RuntimeConfig:
        """The configuration that ought to run, whether it does or not."""
        assert self._wanted is not None, "the supervisor was not configured"
        return self._wanted

    @property
    def config_version(self) -> int | None:
        """The version that really runs."""
        return None if self._run is None else self._run.config.version

    @property
    def active_connections(self) -> int:
        return 0 if self._run is None else self._run.runtime.active_connections

    @property
    def skills_loaded(self) -> tuple[str, ...]:
        return () if self._run is None else self._run.runtime.skills_loaded

    @property
    def workflows_loaded(self) -> tuple[str, ...]:
        return () if self._run is None else self._run.runtime.workflows_loaded

    @property
    def ignored(self) -> tuple[Ignored, ...]:
        return () if self._run is None else self._run.runtime.ignored

    @property
    def versions(self) -> Versions:
        return Versions(agent=VERSION) if self._run is None else self._run.runtime.versions

    @property
    def connections(self) -> Mapping[str, str]:
        return {} if self._run is None else self._run.runtime.connections

    @property
    def error(self) -> ReportedError | None:
        """The failure that keeps the runtime from running, or else the error that it reports while it runs."""
        return self._failure or (None if self._run is None else self._run.runtime.error)

    def open_chat(self, question: Question) -> OpenChat:
        """Begin to answer. Raises `ChatError`."""
        if self._run is None:
            raise NotServing("The agent's runtime is not running")
        return self._run.runtime.open_chat(question)

    async def run(self) -> NoReturn:
        """Start the runtime, and again after each failure or change. Cancelling this stops the runtime."""
        while True:
            self._changed.clear()
            started_s = self._monotonic()
            try:
                await self._serve(self.wanted_config)
                self._backoff.reset()
            except RuntimeFailed as failure:
                if self._monotonic() - started_s >= STABLE_RUN_S:
                    self._backoff.reset()
                wait_s = self._backoff.next_wait_s()
                self._note_failure(failure, wait_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()

    async def _serve(self, config: RuntimeConfig) -> None:
        """One run of the runtime, until another configuration is wanted. Raises `RuntimeFailed`."""
        runtime = self._kind(config).create(config)
        try:
            await runtime.start()
            if self._draining:
                runtime.drain()
            self._note_serving(runtime, config)
            if not await run_until(self._changed, runtime.wait_until_stopped()):
                raise RuntimeFailed("runtime_stopped", "The runtime stopped unexpectedly")
        finally:
            self._run = None
            self._serving.clear()
            await runtime.stop()

    def _kind(self, config: RuntimeConfig) -> RuntimeKind:
        """Raises `RuntimeFailed`."""
        kind = self._runtimes.get(config.type)
        if kind is None:
            raise RuntimeFailed("runtime_unknown", f"This agent has no runtime {config.type!r:.64}")
        return kind

    def _note_serving(self, runtime: Runtime, config: RuntimeConfig) -> None:
        self._run = _Run(runtime, config)
        self._serving.set()
        _log.info("runtime_serving", type=config.type, config_version=config.version)
        self._start_attempted.set()
        if self._failure is not None:
            self._failure = None
            self._report("info", "The runtime is running again")

    def _note_failure(self, failure: RuntimeFailed, wait_s: float) -> None:
        error = ReportedError(code=failure.code, message=failure.message)
        _log.error("runtime_failed", code=error.code, message=error.message, wait_s=round(wait_s, 2))
        self._start_attempted.set()
        if error != self._failure:
            self._failure = error
            self._report("error", f"{error.code}: {error.message}")
