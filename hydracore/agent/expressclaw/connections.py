"""The states of channels, integrations and memory, as the agent's status shows them."""

from __future__ import annotations

from typing import Final

OFF: Final = "off"
READY: Final = "ready"
CONNECTED: Final = "connected"
UNSUPPORTED: Final = "unsupported"

_ERROR_PREFIX: Final = "error: "


def error_state(reason: object) -> str:
    return f"{_ERROR_PREFIX}{reason}"


def error_reason(state: str) -> str | None:
    """The reason in a state that was made by `error_state`, or None for any other state."""
    return state.removeprefix(_ERROR_PREFIX) if state.startswith(_ERROR_PREFIX) else None
