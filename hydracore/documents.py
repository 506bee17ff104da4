"""JSON documents whose schema is up to their owner: what they may not hold, how they are patched, what is masked.

A text is a secret if its name says so (`bot_token`, `apiKey`, ...) or the name of anything around it does. Secrets are
also the `value` of a pair whose other half is such a name, the address of a webhook (for most services, whoever knows
it may post there), and every URL with user information before its host. Secrets are sealed before they are stored, and
shown masked. A mask that comes back unchanged stands for its secret, so that a client may send back what it was shown.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Final, NamedTuple, cast

import msgspec

from hydracore.item_matching import Counterparts, ValueNumbering
from hydracore.secret_names import SecretNames, is_secret_text

#: The most levels of a document. Deeper ones are refused, because every reader on the way to the agent recurses.
DEPTH_MAX: Final = 32

#: The most values of a document. Each is looked at several times, while other requests wait.
VALUES_MAX: Final = 20_000

MASK: Final = "****"
#: Of a secret of at least this length, the last characters are shown, so that people can recognize it.
_TAIL_SHOWN_LENGTH_MIN: Final = 12
_TAIL_LENGTH: Final = 4

#: The message for a document that is deeper than `DEPTH_MAX`.
TOO_DEEP: Final = f"Value error, documents may be {DEPTH_MAX} levels deep"

#: The message for a document with more than `VALUES_MAX` values.
TOO_MANY: Final = f"Value error, documents may have {VALUES_MAX:,} values"

#: The message for a mask that may not belong to the secret that is stored in its place.
MASK_UNMATCHED: Final = (
    "Value error, it cannot be told which secret this stands for: the secret has changed or moved since it was shown so, or there"
    " are several like it; read it again, or give the secret itself"
)

#: Used where no object is stored.
_EMPTY: Final[dict[str, Any]] = {}

_CANONICAL: Final = msgspec.json.Encoder(order="deterministic")

Path = tuple[str | int, ...]


class Flaw(NamedTuple):
    """Something that a document must not hold, and where it is."""

    path: Path
    msg: str
    type: str


class MasksUnmatched(Exception):
    """A document holds masks, at `paths`, that may not belong to the secrets that are stored in their places."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        # Without the paths: where they have long names, they can be ten thousand times as long as the document.
        super().__init__(f"{len(paths)} masks of other secrets")
        self.paths = paths


def flaws(value: Any, *, depth_max: int = DEPTH_MAX) -> Iterator[Flaw]:
    """Everything in `value` that cannot be stored and shown again, as JSON and in PostgreSQL.

    Stops after `VALUES_MAX` values.
    """
    values = 1
    to_visit: list[tuple[str, Any, Path]] = [("", value, ())]
    while to_visit:
        name, item, path = to_visit.pop()
        if name:
            yield from _text_flaws(name, path)
        if len(path) > depth_max:
            yield Flaw(path, TOO_DEEP, "value_error")
        elif isinstance(item, dict | list):
            within = cast("dict[str, Any] | list[Any]", item)
            values += len(within)
            if values > VALUES_MAX:
                yield Flaw((), TOO_MANY, "value_error")
                return
            to_visit += reversed(list(_items(within, path)))
        elif isinstance(item, float) and not math.isfinite(item):
            yield Flaw(path, "Input should be a finite number", "finite_number")
        elif isinstance(item, str):
            yield from _text_flaws(item, path)


def _items(value: dict[str, Any] | list[Any], path: Path) -> Iterator[tuple[str, Any, Path]]:
    """The name, value and path of each item. Items of lists have an empty name."""
    if isinstance(value, list):
        yield from (("", item, (*path, index)) for index, item in enumerate(value))
    else:
        for name, item in value.items():
            # A name may be unencodable, but its path must be printable.
            yield name, item, (*path, name.encode(errors="replace").decode())


def count_values(value: Any) -> int:
    """The number of values in a document, itself included."""
    if isinstance(value, dict):
        return 1 + sum(map(count_values, cast("dict[str, Any]", value).values()))
    return 1 + sum(map(count_values, cast("list[Any]", value))) if isinstance(value, list | tuple) else 1


def _text_flaws(text: str, path: Path) -> Iterator[Flaw]:
    try:
        text.encode()
    except UnicodeEncodeError:
        msg = "Input should be a valid string, unable to parse raw data as a unicode string"
        yield Flaw(path, msg, "string_unicode")
        return
    if "\0" in text:
        yield Flaw(path, "Value error, text must not contain the NUL character", "value_error")


def merge_patch(target: Any, patch: Any) -> Any:
    """`target` after a JSON merge patch (RFC 7396, section 2). Neither is changed."""
    if not isinstance(patch, dict):
        return patch
    result = dict(cast("dict[str, Any]", target)) if isinstance(target, dict) else {}
    for name, value in cast("dict[str, Any]", patch).items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


def mask(secret: str) -> str:
    """What is shown in place of a secret."""
    return MASK + secret[-_TAIL_LENGTH:] if len(secret) >= _TAIL_SHOWN_LENGTH_MIN else MASK


def is_mask(text: str) -> bool:
    """Whether `text` has the form of a mask."""
    return text.startswith(MASK) and len(text) in {len(MASK), len(MASK) + _TAIL_LENGTH}


def masked(value: Any) -> Any:
    """`value` with every secret in it masked."""
    return _replace_secrets(value, mask)


def is_same(one: Any, other: Any) -> bool:
    """Whether two documents are the same JSON. `1` is not the same as `true`."""
    return _CANONICAL.encode(one) == _CANONICAL.encode(other)


def unmasked(value: Any, stored: Any, *, shown_together: Iterable[Any] = ()) -> Any:
    """`value` with each mask replaced by the stored secret that it stands for.

    `value` is a merge patch of `stored` or, if it is a list, replaces it. Items of lists are matched by their `id`, and
    otherwise by their contents and their order (see `item_matching`). `shown_together`: other documents that are shown
    together with `stored`; their masks are refused too where they would be stored in place of secrets.

    Raises `MasksUnmatched` where a mask belongs, or may belong, to another secret than the stored one, which for
    example was changed after it was shown: storing the mask would lose the secret. Also raises it where the patch would
    make the place of a stored secret an ordinary one (a webhook that becomes something else), so that the secret would
    be stored in clear.
    """
    unmasking = _Unmasking(stored, shown_together)
    result = unmasking.restore(value, _Place((), stored, unmasking.shown))
    if unmasking.unmatched:
        raise MasksUnmatched(tuple(unmasking.unmatched))
    return result


class _Place(NamedTuple):
    """Where a value is to be stored, and what is stored there. `shown`: `stored` as it was shown, with masks.

    `secret`: whether texts in this place will be secrets. `was_secret`: whether they were. `merging`: whether the value
    is a merge patch.
    """

    path: Path
    stored: Any
    shown: Any
    secret: bool = False
    was_secret: bool = False
    merging: bool = True


class _Unmasking:
    """Replaces masks in a document by the secrets that they stand for. `unmatched`: the paths of other masks."""

    def __init__(self, stored: Any, shown_together: Iterable[Any]) -> None:
        self.unmatched: list[Path] = []
        self.shown = masked(stored)
        self._all_stored = [stored, *shown_together]
        self._numbering = ValueNumbering(is_mask)
        self._counterparts = Counterparts(self._numbering)
        self._stored_names: dict[int, SecretNames] = {}

    @cached_property
    def _masks(self) -> set[str]:
        """The masks of all stored secrets. Needed where a mask was moved to a place that is not a secret's."""
        found = set[str]()

        def note(secret: str) -> str:
            found.add(mask(secret))
            return secret

        for each in self._all_stored:
            _replace_secrets(each, note)
        return found

    def restore(self, value: Any, place: _Place) -> Any:
        if not place.merging and not self._numbering.has_mask(value):
            return value
        if isinstance(value, dict):
            return self._restore_object(cast("dict[str, Any]", value), place)
        if isinstance(value, list | tuple):
            return self._restore_list(cast("list[Any]", value), place)
        return self._restore_text(value, place) if isinstance(value, str) and is_mask(value) else value

    def _restore_object(self, given: dict[str, Any], place: _Place) -> dict[str, Any]:
        is_object = isinstance(place.stored, dict)
        stored_object = cast("dict[str, Any]", place.stored) if is_object else _EMPTY
        shown = cast("dict[str, Any]", place.shown) if is_object else _EMPTY
        # A value that says which other values are secrets (`{"name": "token", ...}`) may be a secret itself. If its mask
        # comes back, the stored value is used to find the secrets' names.
        resolved = {
            name: stored_object[name] if isinstance(item, str) and item == shown.get(name) else item
            for name, item in given.items()
        }
        names, stored_names = (
            SecretNames(stored_object | resolved if place.merging else resolved),
            self._names_of(stored_object),
        )
        if place.merging and not place.secret:
            untouched = [
                name for name in stored_object.keys() - given.keys() if place.was_secret or name in stored_names
            ]
            self.unmatched += [(*place.path, name) for name in untouched if name not in names]
        return {
            name: self.restore(
                item,
                _Place(
                    (*place.path, name),
                    stored_object.get(name),
                    shown.get(name),
                    secret=place.secret or name in names,
                    was_secret=place.was_secret or name in stored_names,
                    merging=place.merging,
                ),
            )
            if isinstance(item, dict | list | tuple) or (isinstance(item, str) and is_mask(item))
            else item
            for name, item in given.items()
        }

    def _names_of(self, stored_object: dict[str, Any]) -> SecretNames:
        """The secret names of a stored object, computed once, however many items are versions of it."""
        return self._stored_names.setdefault(id(stored_object), SecretNames(stored_object))

    def _restore_list(self, given: list[Any], place: _Place) -> list[Any]:
        if not self._numbering.has_mask(given):
            return given
        stored_list = cast("list[Any]", place.stored) if isinstance(place.stored, list | tuple) else []
        shown = cast("list[Any]", place.shown)
        pairs = self._counterparts.match(given, stored_list, shown) if stored_list else {}
        return [
            self.restore(
                item,
                place._replace(
                    path=(*place.path, index),
                    stored=stored_list[pairs[index]] if index in pairs else None,
                    shown=shown[pairs[index]] if index in pairs else None,
                    merging=False,
                ),
            )
            for index, item in enumerate(given)
        ]

    def _restore_text(self, text: str, place: _Place) -> Any:
        """The value that a text in the form of a mask stands for."""
        stored = place.stored
        is_secret = place.secret or is_secret_text(stored)
        if is_secret and isinstance(stored, str) and text == mask(stored):
            return stored
        # The mask of a secret in another place is not stored as if it were a text.
        if is_secret or place.was_secret or (text in self._masks and text != stored):
            self.unmatched.append(place.path)
        return text


async def replace_secrets(value: Any, change: Callable[[str], Awaitable[str | None]], *, secret: bool = False) -> Any:
    """`value` with every secret replaced by the result of `change`. `secret`: whether all texts in it are secrets."""
    if isinstance(value, dict):
        within = cast("dict[str, Any]", value)
        names = SecretNames(within)
        return {
            name: await replace_secrets(item, change, secret=secret or name in names) for name, item in within.items()
        }
    if isinstance(value, list | tuple):
        return [await replace_secrets(item, change, secret=secret) for item in cast("list[Any]", value)]
    return await change(value) if isinstance(value, str) and (secret or is_secret_text(value)) else value


def _replace_secrets(value: Any, change: Callable[[str], str], *, secret: bool = False) -> Any:
    if isinstance(value, dict):
        within = cast("dict[str, Any]", value)
        names = SecretNames(within)
        return {name: _replace_secrets(item, change, secret=secret or name in names) for name, item in within.items()}
    if isinstance(value, list | tuple):
        return [_replace_secrets(item, change, secret=secret) for item in cast("list[Any]", value)]
    return change(value) if isinstance(value, str) and (secret or is_secret_text(value)) else value
