"""Estimates how much memory cached states and documents take."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

import msgspec

from events.state import Instance

#: Memory of a decoded document as a multiple of its JSON's length, at worst: each small part is an object.
_BYTES_PER_JSON_BYTE: Final = 24

#: The fields of a state that may be large, and the approximate bytes of all others together.
_LARGE_FIELDS: Final = attrgetter(
    *("agent_name", "manifest_id", "recipe_id", "website_template_slug", "user_display_name"),
    *("workflow_slugs", "capabilities", "config"),
)
_OTHER_FIELDS_BYTES: Final = 2_048

_encode = msgspec.json.Encoder().encode


def state_bytes(state: Instance, *, before: Instance | None, weight: int) -> int:
    """About how many bytes `state` takes. `before`: an earlier state of the same stream, if there is one, and `weight` its weight."""
    config = state.config
    if before is not None and before.config is config:
        # Only a change of the configuration changes a large field. Measuring it for each append would take noticeable time.
        return weight
    weight = _OTHER_FIELDS_BYTES + len(_encode(_LARGE_FIELDS(state)))
    if config.integrations or config.skills:
        weight += (_BYTES_PER_JSON_BYTE - 1) * len(_encode((config.integrations, config.skills)))
    return weight


def document_bytes(value: Any) -> int:
    """About how many bytes a decoded JSON value takes."""
    return len(value) if isinstance(value, str) else _BYTES_PER_JSON_BYTE * len(_encode(value))
