"""How channels, integrations and memory fare: the words for it that the agent's status has, by name."""

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
    """Why it does not work; None where it does, or is not to."""
    return state.removeprefix(_FAILED) if state.startswith(_FAILED) else None
