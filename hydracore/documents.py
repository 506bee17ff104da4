"""JSON documents whose shape is their owner's business: what they may not hold, how they are patched, what is hidden.

A text under a name that says it is a secret (`bot_token`, `apiKey`, ...), or anywhere below such a name, is one. So are the
`value` of a pair whose other half is such a name, the address of a webhook (whoever knows that of most services may post
there), and every URL that names a user before its host. It is sealed before it is stored and shown masked; a masked text that
comes back unchanged stands for the secret itself, so that a client may send back what it was shown.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Final, NamedTuple, cast

import msgspec

from hydracore.document_items import Counterparts, Shapes
from hydracore.secret_names import SecretNames, is_secret_text

#: Deeper documents are refused: every reader on the way to the agent recurses.
DEPTH_MAX: Final = 32

#: So are those with more values: each is looked at several times, while others wait.
VALUES_MAX: Final = 20_000

MASK: Final = "****"
#: Of a secret this long, the last characters are shown, so that people can tell which one it is.
_TELLING_LENGTH_MIN: Final = 12
_TELLING: Final = 4

#: What is said of a document that is deeper.
TOO_DEEP: Final = f"Value error, documents may be {DEPTH_MAX} levels deep"

#: What is said of one with more values.
TOO_MANY: Final = f"Value error, documents may have {VALUES_MAX:,} values"

#: What is said of a mask that is not known to be of a secret which is stored there.
OUTDATED: Final = (
    "Value error, it cannot be told which secret this stands for: the secret has changed or moved since it was shown so, or there"
    " are several like it; read it again, or give the secret itself"
)

#: Stands where no object is stored.
_NOTHING: Final[dict[str, Any]] = {}

_CANONICAL: Final = msgspec.json.Encoder(order="deterministic")

Path = tuple[str | int, ...]


class Flaw(NamedTuple):
    """What a document may not hold, and where."""

    path: Path
    msg: str
    type: str


class MasksOutdated(Exception):
    """A document holds masks, at `paths`, that are not known to be of the secrets which are stored there."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        # Not where: with long names on the way to each, that could be ten thousand times as long as the document.
        super().__init__(f"{len(paths)} masks of other secrets")
        self.paths = paths


def flaws(value: Any, *, depth_max: int = DEPTH_MAX) -> Iterator[Flaw]:
    """Everything in `value` that cannot be stored and shown again, as JSON and in PostgreSQL; up to where it has too many values."""
    values = 1
    left: list[tuple[str, Any, Path]] = [("", value, ())]
    while left:
        name, item, path = left.pop()
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
            left += reversed(list(_within(within, path)))
        elif isinstance(item, float) and not math.isfinite(item):
            yield Flaw(path, "Input should be a finite number", "finite_number")
        elif isinstance(item, str):
            yield from _text_flaws(item, path)


def _within(value: dict[str, Any] | list[Any], path: Path) -> Iterator[tuple[str, Any, Path]]:
    """Names, items and their places; an item of a list has no name."""
    if isinstance(value, list):
        yield from (("", item, (*path, index)) for index, item in enumerate(value))
    else:
        for name, item in value.items():
            # Whatever the name is, where the flaw is must be printable.
            yield name, item, (*path, name.encode(errors="replace").decode())


def values_in(value: Any) -> int:
    """How many values a document has, itself among them."""
    if isinstance(value, dict):
        return 1 + sum(map(values_in, cast("dict[str, Any]", value).values()))
    return 1 + sum(map(values_in, cast("list[Any]", value))) if isinstance(value, list | tuple) else 1


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
    """What is shown of a secret."""
    return MASK + secret[-_TELLING:] if len(secret) >= _TELLING_LENGTH_MIN else MASK


def is_mask(text: str) -> bool:
    """Whether `text` is what `mask` makes of some secret."""
    return text.startswith(MASK) and len(text) in {len(MASK), len(MASK) + _TELLING}


def masked(value: Any) -> Any:
    """`value` with every secret in it masked."""
    return _mapped(value, mask)


def is_same(one: Any, other: Any) -> bool:
    """Whether two documents are the same JSON, in which `1` is not `true`."""
    return _CANONICAL.encode(one) == _CANONICAL.encode(other)


def unmasked(value: Any, stored: Any, *, beside: Iterable[Any] = ()) -> Any:
    """`value` with each masked text that stands where `stored` has that very secret replaced by the secret.

    `value` is a merge patch of `stored` or, where it is a list, takes its place. Items of lists are told apart by their `id`,
    and where that does not do by their contents and their order (see `document_items`). Raises `MasksOutdated` where a mask is of
    another secret, as it is when the secret was changed after it was shown, or may be: to keep the mask would lose the secret.
    So it does where the secret's place would be no secret's any more (a webhook that becomes something else): it would be
    stored in clear. `beside`: what is shown together with `stored`, whose masks are not stored instead of secrets either.
    """
    restoring = _Restoring(stored, beside)
    result = restoring.restored(value, _Place((), stored, restoring.shown))
    if restoring.outdated:
        raise MasksOutdated(tuple(restoring.outdated))
    return result


class _Place(NamedTuple):
    """Where a value is to stand, and what stands there. `shown`: what was shown of `stored`.

    `secret`, `was_secret`: that it is a place of secrets, and that it was. `merging`: that the value is a merge patch.
    """

    path: Path
    stored: Any
    shown: Any
    secret: bool = False
    was_secret: bool = False
    merging: bool = True


class _Restoring:
    """Puts the secrets of a document back for their masks. `outdated`: the places of masks that cannot be told whose they are."""

    def __init__(self, stored: Any, beside: Iterable[Any]) -> None:
        self.outdated: list[Path] = []
        self.shown = masked(stored)
        self._all_stored = [stored, *beside]
        self._shapes = Shapes(is_mask)
        self._counterparts = Counterparts(self._shapes)
        self._names_known: dict[int, SecretNames] = {}

    @cached_property
    def _masks(self) -> set[str]:
        """Of all that is stored: needed where a mask has come to a place of no secret."""
        found = set[str]()

        def note(secret: str) -> str:
            found.add(mask(secret))
            return secret

        for each in self._all_stored:
            _mapped(each, note)
        return found

    def restored(self, value: Any, place: _Place) -> Any:
        if not place.merging and not self._shapes.has_mask(value):
            return value
        if isinstance(value, dict):
            return self._object(cast("dict[str, Any]", value), place)
        if isinstance(value, list | tuple):
            return self._list(cast("list[Any]", value), place)
        return self._text(value, place) if isinstance(value, str) and is_mask(value) else value

    def _object(self, given: dict[str, Any], place: _Place) -> dict[str, Any]:
        is_known = isinstance(place.stored, dict)
        known = cast("dict[str, Any]", place.stored) if is_known else _NOTHING
        shown = cast("dict[str, Any]", place.shown) if is_known else _NOTHING
        # What says of the others whether they are secrets may be one itself: shown masked, it says what it said before.
        told = {
            name: known[name] if isinstance(item, str) and item == shown.get(name) else item
            for name, item in given.items()
        }
        names, names_known = SecretNames(known | told if place.merging else told), self._names_of(known)
        if place.merging and not place.secret:
            left = [name for name in known.keys() - given.keys() if place.was_secret or name in names_known]
            self.outdated += [(*place.path, name) for name in left if name not in names]
        return {
            name: self.restored(
                item,
                _Place(
                    (*place.path, name),
                    known.get(name),
                    shown.get(name),
                    secret=place.secret or name in names,
                    was_secret=place.was_secret or name in names_known,
                    merging=place.merging,
                ),
            )
            if isinstance(item, dict | list | tuple) or (isinstance(item, str) and is_mask(item))
            else item
            for name, item in given.items()
        }

    def _names_of(self, known: dict[str, Any]) -> SecretNames:
        """Of an object that is stored: once, however many items are versions of it."""
        return self._names_known.setdefault(id(known), SecretNames(known))

    def _list(self, given: list[Any], place: _Place) -> list[Any]:
        if not self._shapes.has_mask(given):
            return given
        known = cast("list[Any]", place.stored) if isinstance(place.stored, list | tuple) else []
        shown = cast("list[Any]", place.shown)
        pairs = self._counterparts.of(given, known, shown) if known else {}
        return [
            self.restored(
                item,
                place._replace(
                    path=(*place.path, index),
                    stored=known[pairs[index]] if index in pairs else None,
                    shown=shown[pairs[index]] if index in pairs else None,
                    merging=False,
                ),
            )
            for index, item in enumerate(given)
        ]

    def _text(self, text: str, place: _Place) -> Any:
        """What a text that looks like a mask stands for."""
        stored = place.stored
        is_secret = place.secret or is_secret_text(stored)
        if is_secret and isinstance(stored, str) and text == mask(stored):
            return stored
        # A mask that was moved out of its secret's place is not stored instead of it.
        if is_secret or place.was_secret or (text in self._masks and text != stored):
            self.outdated.append(place.path)
        return text


async def with_secrets(value: Any, change: Callable[[str], Awaitable[str | None]], *, secret: bool = False) -> Any:
    """`value` with every secret in it replaced by what `change` makes of it. `secret`: that all texts in it are."""
    if isinstance(value, dict):
        within = cast("dict[str, Any]", value)
        names = SecretNames(within)
        return {name: await with_secrets(item, change, secret=secret or name in names) for name, item in within.items()}
    if isinstance(value, list | tuple):
        return [await with_secrets(item, change, secret=secret) for item in cast("list[Any]", value)]
    return await change(value) if isinstance(value, str) and (secret or is_secret_text(value)) else value


def _mapped(value: Any, change: Callable[[str], str], *, secret: bool = False) -> Any:
    if isinstance(value, dict):
        within = cast("dict[str, Any]", value)
        names = SecretNames(within)
        return {name: _mapped(item, change, secret=secret or name in names) for name, item in within.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change, secret=secret) for item in cast("list[Any]", value)]
    return change(value) if isinstance(value, str) and (secret or is_secret_text(value)) else value
