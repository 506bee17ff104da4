"""Runs one part: starts it, and restarts it with exponential backoff when it ends, until it is stopped."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from hydracore.embedded.account import UserArguments
from hydracore.embedded.errors import EmbeddedError
from hydracore.embedded.leftovers import kill_group
from hydracore.embedded.part import Part
from hydracore.log_files import rotate_periodically
from hydracore.waiting import first_of

#: The pause before a restart, in seconds. It doubles from the first to the longest,
#: and is reset after a run of `STABLE_S`.
BACKOFF_S_FIRST: Final = 0.2
BACKOFF_S_MAX: Final = 5.0
STABLE_S: Final = 20.0


class PartRunner:
    """One part and its process; between two starts there is none.

    `on_change` is called whenever the process has started or ended, `on_failure` with one line
    about each failed start, each unexpected end, and each failure to write the log.
    """

    def __init__(
        self, part: Part, *, log: Path, on_change: Callable[[], None], on_failure: Callable[[str], None]
    ) -> None:
        self.part = part
        self.log = log
        self.starts = 0
        self._on_change = on_change
        self._on_failure = on_failure
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._grace_s = 0.0
        self._started_at_s = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the main process; `None` while there is none."""
        return self._process.pid if self._process and self._process.returncode is None else None

    def since_start_s(self) -> float:
        """Seconds since the last start."""
        return asyncio.get_running_loop().time() - self._started_at_s

    def begin(self) -> None:
        assert self._task is None
        self._task = asyncio.create_task(self._run_repeatedly(), name=f"run {self.part.name}")

    def raise_failure(self) -> None:
        """Raise the error that ended this runner, if there was one. The part is not started again then."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def stop(self, *, grace_s: float) -> None:
        """Ask the main process to end, and kill it after `grace_s`. Kill what is left of its process group."""
        self._grace_s = grace_s
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _run_repeatedly(self) -> None:
        """Start the part whenever it is not running, until `stop` is called.

        Only this task starts and ends the process, so that a stop cannot miss a process that is just being started.
        """
        backoff_s = BACKOFF_S_FIRST
        log_rotation = asyncio.create_task(rotate_periodically(lambda: [self.log]))
        try:
            while not self._stopping.is_set():
                await self._run_once()
                if self.since_start_s() > STABLE_S:
                    backoff_s = BACKOFF_S_FIRST
                with suppress(TimeoutError):
                    async with asyncio.timeout(backoff_s):
                        await self._stopping.wait()
                backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)
        finally:
            log_rotation.cancel()
            # Also after an error or a cancellation: nothing else would end the process and wait for it.
            if self._process is not None and self._process.returncode is None:
                kill_group(self._process.pid)
                await self._process.wait()

    async def _run_once(self) -> None:
        """Start the part and wait for its end. A failure to start goes to its log, and the next try may succeed."""
        self.starts += 1
        self._started_at_s = asyncio.get_running_loop().time()
        try:
            if not await self._prepare():
                return
            self._process = await self._spawn()
        except (OSError, EmbeddedError) as error:
            self._write_log(f"could not be started: {error}")
            if not self._stopping.is_set():
                self._on_failure(f"{self.part.name} could not be started: {error}; retrying")
            return
        self._on_change()
        status = await self._wait_for_end(self._process)
        self._write_log(f"(pid {self._process.pid}) ended: {_status_text(status)}")
        if not self._stopping.is_set():
            self._on_failure(
                f"{self.part.name} has ended ({_status_text(status)}) and is being restarted; see {self.log}"
            )
        self._on_change()

    async def _prepare(self) -> bool:
        """Prepare a start. Returns False if `stop` was called meanwhile, which cancels the preparation."""
        preparing = asyncio.create_task(self.part.prepare())
        await first_of(preparing, asyncio.create_task(self._stopping.wait()))
        if not preparing.cancelled():
            preparing.result()
        return not self._stopping.is_set()

    async def _wait_for_end(self, process: asyncio.subprocess.Process) -> int:
        """Wait until the process ends by itself, or end it once `stop` is called. Returns its exit status."""
        ended = asyncio.create_task(process.wait())
        if ended not in await first_of(ended, asyncio.create_task(self._stopping.wait())):
            with suppress(ProcessLookupError):
                process.send_signal(self.part.stop_signal)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._grace_s):
                    await process.wait()
        kill_group(process.pid)
        return await process.wait()

    async def _spawn(self) -> asyncio.subprocess.Process:
        part = self.part
        user_arguments: UserArguments = part.account.user_arguments() if part.account else {}
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *part.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(part.environ),
                cwd=part.cwd,
                # In a new session: Ctrl-C in the terminal reaches only the
                # supervisor, which then stops the parts in order.
                start_new_session=True,
                **user_arguments,
            )

    def _write_log(self, text: str) -> None:
        try:
            with self.log.open("a") as log:
                log.write(f"{self.part.name} {text}\n")
        except OSError as error:
            # A part needs no log to run: a full disk must not end it.
            self._on_failure(f"cannot write {self.log}: {error.strerror}")


def _status_text(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
