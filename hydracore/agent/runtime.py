"""What runs the customer's agent on the VPS. The agent supervises exactly one runtime; `expressclaw` is built in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from hydracore.agent import VERSION
from hydracore.agent.messages import Versions


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`version` counts the control plane's changes; `settings` is for the runtime named by `type`."""

    type: str
    version: int
    settings: dict[str, Any]

    def __repr__(self) -> str:
        # Settings hold prompts and bot tokens.
        return f"RuntimeConfig(type={self.type!r}, version={self.version})"


class Runtime(Protocol):
    """One run of a runtime with one configuration: started once, stopped once."""

    async def start(self) -> None:
        """Return as soon as it can serve. Raises `RuntimeFailed`."""

    async def wait(self) -> None:
        """Wait until it no longer serves. Raises `RuntimeFailed` with the reason where it knows one."""

    async def stop(self) -> None:
        """End it, whatever its state, within seconds."""

    def drain(self) -> None:
        """Take no new chats from now on."""

    @property
    def active_connections(self) -> int:
        """Chats that are open now."""
        ...

    @property
    def skills_loaded(self) -> tuple[str, ...]:
        """Names of the skills that it has really loaded, not of those it was asked to load."""
        ...

    @property
    def versions(self) -> Versions: ...


RuntimeFactory = Callable[[RuntimeConfig], Runtime]


class ExpressClaw:
    """The built-in runtime: part of the agent's own process, so its version is the agent's."""

    def __init__(self, config: RuntimeConfig) -> None:
        self.config = config
        self._stopped = asyncio.Event()
        self._draining = False

    async def start(self) -> None:
        """Nothing to wait for: it is ready with its configuration."""

    async def wait(self) -> None:
        await self._stopped.wait()

    async def stop(self) -> None:
        self._stopped.set()

    def drain(self) -> None:
        self._draining = True

    @property
    def active_connections(self) -> int:
        return 0

    @property
    def skills_loaded(self) -> tuple[str, ...]:
        return ()

    @property
    def versions(self) -> Versions:
        return Versions(agent=VERSION)


#: What runs when the configuration does not name its `type`.
DEFAULT_RUNTIME = "expressclaw"

#: The runtimes this agent can run, by the `type` in their configuration.
RUNTIMES: Mapping[str, RuntimeFactory] = {DEFAULT_RUNTIME: ExpressClaw}
