"""Runs cloudsim: as a program until a signal ends it (`run`), or inside another one (`serve`)."""

import asyncio
import contextlib
import fcntl
import secrets
import socket
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
import uvloop

from hydracore.cloudsim.app import make_app
from hydracore.cloudsim.boot import Booter, ProcessBooter
from hydracore.cloudsim.boot_inline import InlineBooter
from hydracore.cloudsim.disk import DISKS
from hydracore.cloudsim.quota import Quota
from hydracore.cloudsim.reconciler import ServerReconciler
from hydracore.cloudsim.sim import CONNECTION_KEY, Sim
from hydracore.cloudsim.store import Store
from hydracore.gc_tuning import freeze_and_collect_less_often
from hydracore.http_protocol import BoundedProtocol
from hydracore.http_server import running_server, uvicorn_config
from hydracore.signals import stop_event

_log = structlog.get_logger(__name__)

BOOT_MODES: Final = ("process", "inline")

#: The longest wait for the lock of a home, which is free within moments after its last cloudsim was killed.
HOME_WAIT_S_MAX: Final = 2.0
HOME_POLL_S: Final = 0.05

#: How long an agent may take to end when it is asked to.
STOP_GRACE_S: Final = 3.0

#: Seconds that open requests get at the end.
SHUTDOWN_GRACE_S: Final = 1
BACKLOG: Final = 1024


class StartRefusedError(Exception):
    """cloudsim cannot start with this home or this address; the text says why, in one line."""


def run(serving: contextlib.AbstractAsyncContextManager[str]) -> None:
    """Run `serving`, made by `serve`, until a signal comes. Exits with 2 and a line on stderr if it cannot start."""

    async def until_signalled() -> None:
        ended = stop_event()
        async with serving as url:
            freeze_and_collect_less_often()
            _log.info("cloudsim_ready", url=url)
            await ended.wait()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(until_signalled())
    except StartRefusedError as refusal:
        sys.stderr.write(f"hydracore cloudsim: {refusal}\n")
        raise SystemExit(2) from None


@contextlib.asynccontextmanager
async def serve(
    *,
    home: Path,
    host: str,
    port: int,
    token: str,
    boot: str = "process",
    stop_servers_on_exit: bool = False,
    action_delay_ms: int = 0,
    stop_grace_s: float = STOP_GRACE_S,
) -> AsyncGenerator[str]:
    """Run a cloudsim in this event loop. Yields its URL, to which `/v1` or `/_sim` is added. Port 0 is any free port.

    At the end, agents go on unless `stop_servers_on_exit` is set, and the next start adopts them.
    `stop_grace_s`: how long they may take to end. Raises `StartRefusedError`.
    """
    assert boot in BOOT_MODES
    home = _make_home(home)
    with contextlib.ExitStack() as stack:
        stack.enter_context(await _lock_home(home))
        listener = stack.enter_context(_open_listener(host, port))
        store = _open_store(home / "cloudsim.sqlite")
        stack.callback(store.close)
        reconciler = _make_reconciler(
            home, store, boot=boot, action_delay_s=action_delay_ms / 1000, stop_grace_s=stop_grace_s
        )
        sim = Sim(
            store=store, reconciler=reconciler, quota=Quota(monotonic=time.monotonic, wall=time.time), token=token
        )
        await reconciler.open()
        try:
            async with _running_app(sim, listener):
                yield f"http://{host}:{listener.getsockname()[1]}"
            if stop_servers_on_exit:
                await reconciler.stop_agents()
        finally:
            await reconciler.aclose()


def _make_home(home: Path) -> Path:
    """The home as an absolute path, which identifies its agents. Created for its owner only, as it holds tokens."""
    home = home.resolve()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartRefusedError(f"{home} cannot be created: {error.strerror}") from None
    return home


def _open_store(path: Path) -> Store:
    try:
        return Store(path, now=lambda: datetime.now(UTC), pick=secrets.randbelow)
    except sqlite3.Error as error:
        raise StartRefusedError(f"{path} cannot be used: {error}") from None


def _make_reconciler(
    home: Path, store: Store, *, boot: str, action_delay_s: float, stop_grace_s: float
) -> ServerReconciler:
    disks = home / DISKS
    processes = ProcessBooter(disks=disks, locks=home / "locks", store=store)
    booter: Booter = processes if boot == "process" else InlineBooter(disks=disks, detached=processes)
    return ServerReconciler(store, booter, disks=disks, action_delay_s=action_delay_s, stop_grace_s=stop_grace_s)


async def _lock_home(home: Path) -> contextlib.AbstractContextManager[object]:
    """Lock the home. The kernel releases the lock when the process ends, however that happens."""
    stream = (home / "cloudsim.lock").open("w")
    deadline_s = time.monotonic() + HOME_WAIT_S_MAX
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                stream.close()
                raise StartRefusedError(f"another cloudsim is running on {home}") from None
            await asyncio.sleep(HOME_POLL_S)
        else:
            return contextlib.closing(stream)


def _open_listener(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=BACKLOG)
    except OSError as error:
        raise StartRefusedError(f"cannot listen on {host}:{port}: {error.strerror}") from None


@contextlib.asynccontextmanager
async def _running_app(sim: Sim, listener: socket.socket) -> AsyncGenerator[None]:
    config = uvicorn_config(make_app(sim), http=_Protocol, lifespan="on", timeout_graceful_shutdown=SHUTDOWN_GRACE_S)
    async with running_server(config, listener):
        try:
            yield
        finally:
            # Held requests are dropped: their clients see the connection close, and nothing more is applied.
            sim.held.release(None, apply=False)


class _Protocol(BoundedProtocol):
    """Passes the client's connection to the handlers, for faults that cut it."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[CONNECTION_KEY] = self.transport  # type: ignore[literal-required] - our own key in ASGI's scope
