"""Runs the parts of one home as separate processes. Each has a mark of the home, by which it is found if we crash."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from hydracore.embedded.errors import PartFailed
from hydracore.embedded.files import tail
from hydracore.embedded.keeper import Keeper
from hydracore.embedded.leftovers import Mark, device_and_inode, stop_leftovers
from hydracore.embedded.part import Part

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
        self._keepers: dict[str, Keeper] = {}

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

        Raises `PartFailed`, and the error that ends its keeper meanwhile.
        """
        assert part.name not in self._keepers
        log = self._logs / f"{part.name}.log"
        keeper = Keeper(self._marked(part), log=log, on_change=self._changed, on_failure=self.report_failure)
        self._keepers[part.name] = keeper
        keeper.begin()
        try:
            async with asyncio.timeout(ready_s_max):
                await self._wait_until_ready(keeper)
        except TimeoutError:
            raise self._failure(keeper, f"was not ready within {ready_s_max:g} s") from None

    async def restart(self, name: str, *, grace_s: float = GRACE_S) -> None:
        """Stop a part and start it again."""
        part = self._keepers[name].part
        await self.stop([name], grace_s=grace_s)
        await self.start(part)

    async def stop(self, names: Iterable[str] | None = None, *, grace_s: float = GRACE_S) -> None:
        """Stop the named parts (by default all) concurrently; unknown names are ignored.

        Raises, once all have stopped, the error that has ended a keeper.
        """
        chosen = [name for name in (list(self._keepers) if names is None else names) if name in self._keepers]
        stops = (self._keepers[name].stop(grace_s=grace_s) for name in chosen)
        ends = await asyncio.gather(*stops, return_exceptions=True)
        for name in chosen:
            del self._keepers[name]
        self._changed()
        for end in ends:
            if end is not None:
                raise end

    def pids(self) -> dict[str, list[int]]:
        """The living main processes, by kind of part."""
        found: dict[str, list[int]] = {}
        for keeper in self._keepers.values():
            found.setdefault(keeper.part.kind, []).extend([keeper.pid] if keeper.pid else [])
        return found

    def log_tails(self) -> dict[str, str]:
        """The end of each part's log, by the part's name."""
        return {name: tail(keeper.log) for name, keeper in self._keepers.items()}

    async def _wait_until_ready(self, keeper: Keeper) -> None:
        while not (keeper.pid and await self._is_ready(keeper)):
            keeper.raise_failure()
            if keeper.starts > 1:
                raise self._failure(keeper, "ended during startup")
            await asyncio.sleep(READY_POLL_S)

    async def _is_ready(self, keeper: Keeper) -> bool:
        return await keeper.part.ready() if keeper.part.ready else keeper.since_start_s() >= keeper.part.ready_after_s

    def _marked(self, part: Part) -> Part:
        mark = Mark(name=part.name, stop_signal=part.stop_signal, home=self._device_and_inode)
        return replace(part, environ={**part.environ, **mark.environ()})

    def _failure(self, keeper: Keeper, reason: str) -> PartFailed:
        return PartFailed(keeper.part.name, reason, keeper.log, tail(keeper.log))

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
