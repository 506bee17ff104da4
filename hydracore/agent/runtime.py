"""What runs the customer's agent on the VPS. The agent supervises exactly one runtime; `expressclaw` is built in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from hydracore.agent.chats import Ask, OpenChat
from hydracore.agent.messages import Ignored, ReportedError, Versions


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`version` counts the control plane's changes; `settings` is for the runtime named by `type`."""

    type: str
    version: int
    settings: dict[str, Any]

    def __repr__(self) -> str:
        # Settings hold prompts and bot tokens.
        return f"RuntimeConfig(type={self.type!r}, version={self.version})"


class Runtime(Protocol):
    """One run of a runtime: started once, stopped once."""

    async def start(self) -> None:
        """Return as soon as it can serve. Raises `RuntimeFailed`."""

    async def wait(self) -> None:
        """Wait until it no longer serves. Raises `RuntimeFailed` with the reason where it knows one."""

    async def stop(self) -> None:
        """End it, whatever its state, within seconds."""

    def apply(self, config: RuntimeConfig) -> bool:
        """Go on with another configuration without dropping a chat; False when that takes a restart.

        Raises `RuntimeFailed` where it cannot be used; then all goes on as before.
        """
        ...

    def drain(self) -> None:
        """Take no new chats from now on."""

    async def idle(self) -> None:
        """Wait until no chat is open."""

    async def cut(self) -> None:
        """Take no new chats, and end the open ones within seconds; what they cost is in the ledger when this returns.
        Whoever is cancelled in it has only ceased to wait."""

    def open_chat(self, ask: Ask) -> OpenChat:
        """Begin to answer. Raises `ChatError` where it cannot even begin."""
        ...

    @property
    def active_connections(self) -> int:
        """Chats that are open now."""
        ...

    @property
    def skills_loaded(self) -> tuple[str, ...]:
        """Names of the skills that it has really loaded, not of those it was asked to load."""
        ...

    @property
    def workflows_loaded(self) -> tuple[str, ...]:
        """Slugs of the workflows that it follows."""
        ...

    @property
    def ignored(self) -> tuple[Ignored, ...]:
        """What of its configuration it does nothing with."""
        ...

    @property
    def versions(self) -> Versions: ...

    @property
    def connections(self) -> Mapping[str, str]:
        """How channels, integrations and memory fare: `off`, `ready`, `connected`, `unsupported` or `error: ...`."""
        ...

    @property
    def error(self) -> ReportedError | None:
        """What does not work though the runtime serves."""
        ...


class RuntimeKind(NamedTuple):
    """`create` makes one run. `check` raises `RuntimeFailed` for a configuration that no run could use, without one."""

    create: Callable[[RuntimeConfig], Runtime]
    check: Callable[[RuntimeConfig], object]


#: The runtimes that agents have, by the `type` in their configuration.
RuntimeType = Literal["expressclaw"]

#: What runs when the configuration does not name its `type`.
DEFAULT_RUNTIME: RuntimeType = "expressclaw"
