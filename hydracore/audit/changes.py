"""What an event does to the state of its instance, field by field. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import msgspec

from events.state import Instance

#: Fields that are not compared: the id never changes; version and time change with every event and are shown with it.
_NOT_COMPARED: Final = frozenset({"id", "version", "updated_ms"})


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """`field`: its path in the state, such as `attempt.server_id`. A list is one field. An absent value is null."""

    field: str
    before: Any
    after: Any


def changes_between(before: Instance | None, after: Instance) -> Iterator[Change]:
    """The fields that differ, in the order of the state's fields. `before` None: there was no instance."""
    for name in Instance.__struct_fields__:
        old, new = None if before is None else getattr(before, name), getattr(after, name)
        # Folding copies what an event leaves alone, so most fields are the very same object.
        if old is not new and name not in _NOT_COMPARED:
            yield from _differences(name, msgspec.to_builtins(old), msgspec.to_builtins(new))


def leaves(field: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every field of a document with its value, named as in `Change`."""
    if isinstance(value, dict) and value:
        for name, item in cast("dict[str, Any]", value).items():
            yield from leaves(f"{field}.{name}" if field else name, item)
    else:
        yield field, value


def _differences(field: str, old: Any, new: Any) -> Iterator[Change]:
    if isinstance(old, dict) or isinstance(new, dict):
        olds, news = cast("dict[str, Any]", old or {}), cast("dict[str, Any]", new or {})
        for name in {**olds, **news}:
            yield from _differences(f"{field}.{name}", olds.get(name), news.get(name))
    elif old != new:
        yield Change(field=field, before=old, after=new)
