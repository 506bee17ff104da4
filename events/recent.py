"""What was in use lately, to go on from: so many values, and so many bytes of them, because one can be as large as a thousand
others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar

import msgspec

from events.state import Instance

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: How many times as much memory a document takes as its JSON, at worst: each of its small parts is an object.
_OF_DOCUMENTS: Final = 24

#: What may be large in a state, and how much all else takes, about.
_LARGE: Final = attrgetter(
    *("agent_name", "manifest_id", "recipe_id", "website_template_slug", "user_display_name"),
    *("workflow_slugs", "capabilities", "config"),
)
_REST_BYTES: Final = 2_048

_NOTHING: Final = (None, 0)

_encode = msgspec.json.Encoder().encode


class Recent(Generic[K, V]):
    """Values by key, the ones that were put last. The last one is kept whatever it weighs."""

    def __init__(self, *, count_max: int, bytes_max: int) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._bytes = 0

    def __iter__(self) -> Iterator[V]:
        """From the one on that was put longest ago."""
        return (value for value, _ in self._kept.values())

    def get(self, key: K) -> V | None:
        kept = self._kept.get(key)
        return None if kept is None else kept[0]

    def weighed(self, key: K) -> tuple[V | None, int]:
        """The value, and how many bytes it was said to take."""
        return self._kept.get(key, _NOTHING)

    def put(self, key: K, value: V, *, weight: int) -> None:
        """Keep `value`, which takes so many bytes, about, in place of what was there."""
        kept = self._kept
        _, before = kept.pop(key, _NOTHING)
        kept[key] = (value, weight)
        self._bytes += weight - before
        while self._bytes > self._bytes_max or len(kept) > self._count_max:
            if len(kept) == 1:
                break
            _, (_, let_go) = kept.popitem(last=False)
            self._bytes -= let_go

    def pop(self, key: K) -> V | None:
        """The value, which is kept no longer."""
        value, weight = self._kept.pop(key, _NOTHING)
        self._bytes -= weight
        return value


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
