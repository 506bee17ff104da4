"""Keeps one runtime running with the configuration that is wanted, and knows how it fares."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

import structlog

from hydracore.agent import VERSION
from hydracore.agent.backoff import Backoff
from hydracore.agent.errors import RuntimeFailed
from hydracore.agent.messages import Level, ReportedError, Versions
from hydracore.agent.runtime import Runtime, RuntimeConfig, RuntimeFactory
from hydracore.agent.waiting import work_until

log = structlog.get_logger()

RESTART_BASE_S = 0.5
RESTART_CAP_S = 60.0

#: A runtime that served this long was healthy: its next failure is a new trouble, not the old one again.
STEADY_S = 60.0


class _Run(NamedTuple):
    runtime: Runtime
    config: RuntimeConfig


class Supervisor:
    """`configure` it, then `run` it beside the rest; `configure` and `drain` at any time.

    `report` is told once when the runtime fails in a new way, and once when it serves again. `monotonic` gives seconds.
    """

    def __init__(
        self,
        *,
        runtimes: Mapping[str, RuntimeFactory],
        report: Callable[[Level, str], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._wanted: RuntimeConfig | None = None
        self._runtimes = runtimes
        self._report = report
        self._monotonic = monotonic
        self._changed = asyncio.Event()
        self._serving = asyncio.Event()
        self._run: _Run | None = None
        self._draining = False
        self._backoff = Backoff(base_s=RESTART_BASE_S, cap_s=RESTART_CAP_S)
        self.error: ReportedError | None = None

    def configure(self, config: RuntimeConfig) -> None:
        """Run with this configuration from now on; a runtime that runs with another one is restarted."""
        if config != self._wanted:
            self._wanted = config
            self._changed.set()

    def drain(self) -> int:
        """Take no new chats, also after a restart of the runtime. Returns how many are still open."""
        self._draining = True
        if self._run is not None:
            self._run.runtime.drain()
        return self.active_connections

    async def serving(self) -> None:
        """Wait until a runtime serves."""
        await self._serving.wait()

    @property
    def is_serving(self) -> bool:
        return self._run is not None

    @property
    def wanted(self) -> RuntimeConfig:
        """What ought to run, whether it does or not."""
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
    def versions(self) -> Versions:
        return Versions(agent=VERSION) if self._run is None else self._run.runtime.versions

    async def run(self) -> NoReturn:
        """Start the runtime, and again after each failure or change. Cancelling this stops the runtime."""
        while True:
            self._changed.clear()
            started_s = self._monotonic()
            try:
                await self._serve(self.wanted)
                self._backoff.reset()
            except RuntimeFailed as failure:
                if self._monotonic() - started_s >= STEADY_S:
                    self._backoff.reset()
                wait_s = self._backoff.next_s()
                self._note_failure(failure, wait_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()

    async def _serve(self, config: RuntimeConfig) -> None:
        """One run of the runtime, until another configuration is wanted. Raises `RuntimeFailed`."""
        create = self._runtimes.get(config.type)
        if create is None:
            raise RuntimeFailed("runtime_unknown", f"This agent has no runtime {config.type!r:.64}")
        runtime = create(config)
        try:
            await runtime.start()
            if self._draining:
                runtime.drain()
            self._note_serving(runtime, config)
            if not await work_until(self._changed, runtime.wait()):
                raise RuntimeFailed("runtime_stopped", "The runtime stopped by itself")
        finally:
            self._run = None
            self._serving.clear()
            await runtime.stop()

    def _note_serving(self, runtime: Runtime, config: RuntimeConfig) -> None:
        self._run = _Run(runtime, config)
        self._serving.set()
        log.info("runtime_serving", type=config.type, config_version=config.version)
        if self.error is not None:
            self.error = None
            self._report("info", "The runtime serves again")

    def _note_failure(self, failure: RuntimeFailed, wait_s: float) -> None:
        error = ReportedError(code=failure.code, message=failure.message)
        log.error("runtime_failed", code=error.code, message=error.message, wait_s=round(wait_s, 2))
        if error != self.error:
            self.error = error
            self._report("error", f"{error.code}: {error.message}")
