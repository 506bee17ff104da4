"""The states of channels, integrations and memory, as the agent's status shows them."""

from __future__ import annotations

from typing import Final

OFF: Final = "off"
READY: Final = "ready"
CONNECTED: Final = "connected"
UNSUPPORTED: Final = "unsupported"

_FAILED: Final = "error: "


def failing(reason: object) -> str:
    return f"{_FAILED}{reason}"


def reason_of(state: str) -> str | None:
    """The reason in a state that was made by `failing`, or None for any other state."""
    return state.removeprefix(_FAILED) if state.startswith(_FAILED) else None
