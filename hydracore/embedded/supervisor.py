"""Runs the parts of one home as separate processes. Each has a mark of the home, by which it is found if we crash."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from hydracore.embedded.errors import PartFailed
from hydracore.embedded.files import tail
from hydracore.embedded.leftovers import Mark, device_and_inode, stop_leftovers
from hydracore.embedded.part import Part
from hydracore.embedded.part_runner import PartRunner

READY_S_MAX: Final = 30.0
READY_POLL_S: Final = 0.05
#: How long a part may take to stop in order before it is killed.
GRACE_S: Final = 3.0


class Supervisor:
    """Parts by name, in the order of their start.

    `on_change` is called after each start or end of a process, `on_failure` with one line about each unexpected end.
    """

    def __init__(
        self,
        *,
        home: Path,
        logs: Path,
        on_change: Callable[[], None] | None = None,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        self._device_and_inode = device_and_inode(home)
        self._logs = logs
        self._listener = on_change
        self._on_failure = on_failure
        self._runners: dict[str, PartRunner] = {}

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        *,
        home: Path,
        logs: Path,
        on_change: Callable[[], None] | None = None,
        on_failure: Callable[[str], None] | None = None,
    ) -> AsyncGenerator[Self]:
        """A supervisor. It first ends what earlier ones have left running in `home`.

        At the end it stops all its parts.
        """
        await asyncio.to_thread(stop_leftovers, home)
        supervisor = cls(home=home, logs=logs, on_change=on_change, on_failure=on_failure)
        try:
            yield supervisor
        finally:
            await supervisor.stop()

    async def start(self, part: Part, *, ready_s_max: float = READY_S_MAX) -> None:
        """Start a part and wait until it is ready. From then on it is restarted when it ends.

        Raises `PartFailed`, and the error that ends its runner meanwhile.
        """
        assert part.name not in self._runners
        log = self._logs / f"{part.name}.log"
        runner = PartRunner(self._marked(part), log=log, on_change=self._changed, on_failure=self.report_failure)
        self._runners[part.name] = runner
        runner.begin()
        try:
            async with asyncio.timeout(ready_s_max):
                await self._wait_until_ready(runner)
        except TimeoutError:
            raise self._failure(runner, f"was not ready within {ready_s_max:g} s") from None

    async def stop(self, names: Iterable[str] | None = None, *, grace_s: float = GRACE_S) -> None:
        """Stop the named parts (by default all) concurrently; unknown names are ignored.

        Raises, once all have stopped, the error that has ended a runner.
        """
        chosen = [name for name in (list(self._runners) if names is None else names) if name in self._runners]
        stops = (self._runners[name].stop(grace_s=grace_s) for name in chosen)
        ends = await asyncio.gather(*stops, return_exceptions=True)
        for name in chosen:
            del self._runners[name]
        self._changed()
        for end in ends:
            if end is not None:
                raise end

    def pids(self) -> dict[str, list[int]]:
        """The living main processes, by kind of part."""
        found: dict[str, list[int]] = {}
        for runner in self._runners.values():
            found.setdefault(runner.part.kind, []).extend([runner.pid] if runner.pid else [])
        return found

    def log_tails(self) -> dict[str, str]:
        """The end of each part's log, by the part's name."""
        return {name: tail(runner.log) for name, runner in self._runners.items()}

    async def _wait_until_ready(self, runner: PartRunner) -> None:
        while not (runner.pid and await self._is_ready(runner)):
            runner.raise_failure()
            if runner.starts > 1:
                raise self._failure(runner, "ended during startup")
            await asyncio.sleep(READY_POLL_S)

    async def _is_ready(self, runner: PartRunner) -> bool:
        return await runner.part.ready() if runner.part.ready else runner.since_start_s() >= runner.part.ready_after_s

    def _marked(self, part: Part) -> Part:
        mark = Mark(name=part.name, stop_signal=part.stop_signal, home=self._device_and_inode)
        return replace(part, environ={**part.environ, **mark.environ()})

    def _failure(self, runner: PartRunner, reason: str) -> PartFailed:
        return PartFailed(runner.part.name, reason, runner.log, tail(runner.log))

    def report_failure(self, failure: str) -> None:
        """Pass on one line about a failure."""
        if self._on_failure:
            # A closed terminal takes no more lines. The parts run until the signal that comes with its closing.
            with suppress(OSError):
                self._on_failure(failure)

    def _changed(self) -> None:
        """Called from the loop with every change."""
        try:
            if self._listener:
                self._listener()
        except OSError as error:
            # The listener writes pids to a file for other programs. The parts do not depend on it.
            self.report_failure(f"cannot record which parts run: {error.strerror}")
