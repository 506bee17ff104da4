"""The interface of runtimes, which answer chats. An agent supervises exactly one of them; `expressclaw` is built in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from hydracore.agent.chats import OpenChat, Question
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

    async def wait_until_stopped(self) -> None:
        """Wait until it no longer serves. Raises `RuntimeFailed` with the reason where it knows one."""

    async def stop(self) -> None:
        """End it, whatever its state, within seconds."""

    def apply(self, config: RuntimeConfig) -> bool:
        """Switch to another configuration without dropping a chat. Returns False if that takes a restart.

        Raises `RuntimeFailed` if the configuration cannot be used; then the present one stays.
        """
        ...

    def drain(self) -> None:
        """Take no new chats from now on."""

    async def wait_until_idle(self) -> None:
        """Wait until no chat is open."""

    async def interrupt_chats(self) -> None:
        """Take no new chats, and end the open ones within seconds. When this returns, what they cost is in the ledger.

        Cancelling this ends the wait only: the chats end all the same.
        """

    def open_chat(self, question: Question) -> OpenChat:
        """Begin to answer. Raises `ChatError` where it cannot even begin."""
        ...

    @property
    def active_connections(self) -> int:
        """Chats that are open now."""
        ...

    @property
    def skills_loaded(self) -> tuple[str, ...]:
        """The ids of the skills that are really loaded, not of those that were asked for."""
        ...

    @property
    def workflows_loaded(self) -> tuple[str, ...]:
        """The slugs of the workflows that it follows."""
        ...

    @property
    def ignored(self) -> tuple[Ignored, ...]:
        """The parts of its configuration that it does not use."""
        ...

    @property
    def versions(self) -> Versions: ...

    @property
    def connections(self) -> Mapping[str, str]:
        """States of channels, integrations and memory: `off`, `ready`, `connected`, `unsupported` or `error: ...`."""
        ...

    @property
    def error(self) -> ReportedError | None:
        """What does not work though the runtime serves."""
        ...


class RuntimeKind(NamedTuple):
    """`create` makes one run. `check` raises `RuntimeFailed` for a configuration that cannot be used."""

    create: Callable[[RuntimeConfig], Runtime]
    check: Callable[[RuntimeConfig], object]


#: The runtimes that agents have, by the `type` in their configuration.
RuntimeType = Literal["expressclaw"]

#: What runs when the configuration does not name its `type`.
DEFAULT_RUNTIME: RuntimeType = "expressclaw"
