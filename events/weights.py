"""How much memory what is kept takes, about."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

import msgspec

from events.state import Instance

#: How many times as much memory a document takes as its JSON, at worst: each of its small parts is an object.
_OF_DOCUMENTS: Final = 24

#: What may be large in a state, and how much all else takes, about.
_LARGE: Final = attrgetter(
    *("agent_name", "manifest_id", "recipe_id", "website_template_slug", "user_display_name"),
    *("workflow_slugs", "capabilities", "config"),
)
_REST_BYTES: Final = 2_048

_encode = msgspec.json.Encoder().encode


def weight_of(state: Instance, *, before: Instance | None, weight: int) -> int:
    """How many bytes the state takes, about. `before`: an earlier state of the stream, if there is one at hand, and its `weight`."""
    config = state.config
    if before is not None and before.config is config:
        # What can be large changes with the configuration alone, and looking at it for each append would be felt.
        return weight
    weight = _REST_BYTES + len(_encode(_LARGE(state)))
    if config.integrations or config.skills:
        weight += (_OF_DOCUMENTS - 1) * len(_encode((config.integrations, config.skills)))
    return weight


def weight_of_document(value: Any) -> int:
    """How many bytes a JSON value takes, about."""
    return len(value) if isinstance(value, str) else _OF_DOCUMENTS * len(_encode(value))
