"""JSON documents whose shape is their owner's business: what they may not hold, how they are patched, what is hidden.

A text under a name that says it is a secret (`bot_token`, `apiKey`, ...), or anywhere below such a name, is one. So are the
`value` of a pair whose other half is such a name, the address of a webhook (whoever knows that of most services may post
there), and every URL that names a user before its host. It is sealed before it is stored and shown masked; a masked text that
comes back unchanged stands for the secret itself, so that a client may send back what it was shown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any, Final, NamedTuple, cast

#: Deeper documents are refused: every reader on the way to the agent recurses.
DEPTH_MAX: Final = 32

#: So are those with more values: each is looked at several times, while others wait.
VALUES_MAX: Final = 20_000

_SECRET_NAME: Final = re.compile(
    r"token|secret|pass(w|code|phrase)|pwd|credential|authorization|bearer|cookie|api_?key|private_?key|hook_?url"
    r"|connection[_-]?string|(database|db)[_-]?(ur[il]|dsn)"
    r"|(^|[_-])(pass|keys?|o?auth|dsn)$|[a-z](Pass|Keys?|Auth|Dsn)$",
    re.ASCII,
)

#: The half of a pair that says what its `value` is, as in `{"name": "Authorization", "value": "Bearer ..."}`.
_TITLES: Final = frozenset({"name", "key", "header"})

#: A URL with user information (RFC 3986, section 3.2.1): mostly a password, or a token in place of one.
_URL_WITH_USER: Final = re.compile(r"\s*([a-z][a-z0-9+.-]*:)+//[^/?#\s@]+@\S*\s*", re.ASCII | re.IGNORECASE)

MASK: Final = "****"
#: Of a secret this long, the last characters are shown, so that people can tell which one it is.
_TELLING_LENGTH_MIN: Final = 12
_TELLING: Final = 4

#: What is said of a document that is deeper.
TOO_DEEP: Final = f"Value error, documents may be {DEPTH_MAX} levels deep"

#: What is said of one with more values.
TOO_MANY: Final = f"Value error, documents may have {VALUES_MAX:,} values"

#: What is said of a mask that is of no secret which is stored there.
OUTDATED: Final = "Value error, the secret has changed since it was shown so; read it again, or give the secret itself"

Path = tuple[str | int, ...]


class Flaw(NamedTuple):
    """What a document may not hold, and where."""

    path: Path
    msg: str
    type: str


class MasksOutdated(Exception):
    """A document holds masks, at `paths`, that are not of the secrets which are stored there."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        super().__init__(f"Masks of other secrets at {paths}")
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


def unmasked(value: Any, stored: Any) -> Any:
    """`value` with each masked text that stands where `stored` has that very secret replaced by the secret.

    `value` is a merge patch of `stored` or, where it is a list, takes its place. Items of lists are told apart by their `id`,
    and where they have none by their place. Raises `MasksOutdated` where a mask is of another secret, as it is when the secret
    was changed after it was shown: to keep the mask would lose the secret. So it does where the secret's place would be no
    secret's any more (a webhook that becomes something else): it would be stored in clear.
    """
    outdated: list[Path] = []
    result = _unmasked(value, stored, (), outdated, secret=False, was_secret=False, merging=True)
    if outdated:
        raise MasksOutdated(tuple(outdated))
    return result


def _unmasked(
    value: Any, stored: Any, path: Path, outdated: list[Path], *, secret: bool, was_secret: bool, merging: bool
) -> Any:
    if isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        known = cast("dict[str, Any]", stored) if isinstance(stored, dict) else {}
        # A name that is a secret itself, and was shown masked, says what it said before.
        told = {
            name: known[name] if _is_secret(name, known) and _is_mask_of(item, known.get(name)) else item
            for name, item in given.items()
        }
        shape = known | told if merging else told
        if not secret:
            exposed = [name for name in known.keys() - given.keys() if _is_secret(name, known)]
            outdated += [(*path, name) for name in exposed if merging and not _is_secret(name, shape)]
        return {
            name: _unmasked(
                item,
                known.get(name),
                (*path, name),
                outdated,
                secret=secret or _is_secret(name, shape),
                was_secret=was_secret or _is_secret(name, known),
                merging=merging,
            )
            for name, item in given.items()
        }
    if isinstance(value, list | tuple):
        items = cast("list[Any]", stored) if isinstance(stored, list | tuple) else []
        return [
            _unmasked(
                item,
                _counterpart(item, index, items),
                (*path, index),
                outdated,
                secret=secret,
                was_secret=was_secret,
                merging=False,
            )
            for index, item in enumerate(cast("list[Any]", value))
        ]
    stays_secret = secret or _is_secret_text(stored)
    if not (stays_secret or was_secret) or not isinstance(value, str) or not is_mask(value):
        return value
    if stays_secret and _is_mask_of(value, stored):
        return stored
    outdated.append(path)
    return value


def _is_mask_of(value: Any, stored: Any) -> bool:
    return isinstance(value, str) and isinstance(stored, str) and value == mask(stored)


def _counterpart(item: Any, index: int, stored: list[Any]) -> Any:
    """Which of `stored` an item is a new version of: the one with its `id`, so that items may come, go and move."""
    item_id = _id_of(item)
    if item_id is not None:
        return next((each for each in stored if _id_of(each) == item_id), None)
    return stored[index] if index < len(stored) else None


def _id_of(item: Any) -> Any:
    return cast("dict[str, Any]", item).get("id") if isinstance(item, dict) else None


async def with_secrets(value: Any, change: Callable[[str], Awaitable[str | None]], *, secret: bool = False) -> Any:
    """`value` with every secret in it replaced by what `change` makes of it. `secret`: that all texts in it are."""
    if isinstance(value, dict):
        within = cast("dict[str, Any]", value)
        return {
            name: await with_secrets(item, change, secret=secret or _is_secret(name, within))
            for name, item in within.items()
        }
    if isinstance(value, list | tuple):
        return [await with_secrets(item, change, secret=secret) for item in cast("list[Any]", value)]
    return await change(value) if isinstance(value, str) and (secret or _is_secret_text(value)) else value


def _mapped(value: Any, change: Callable[[str], str], *, secret: bool = False) -> Any:
    if isinstance(value, dict):
        within = cast("dict[str, Any]", value)
        return {name: _mapped(item, change, secret=secret or _is_secret(name, within)) for name, item in within.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change, secret=secret) for item in cast("list[Any]", value)]
    return change(value) if isinstance(value, str) and (secret or _is_secret_text(value)) else value


def _is_secret(name: str, within: dict[str, Any]) -> bool:
    """Whether what has this name in the object `within` is a secret."""
    match name.lower():
        case "url":
            return any("webhook" in re.sub("[^a-z]", "", text.lower()) for text in _texts(within, {"type"}))
        case "value":
            return any(map(_names_secret, _texts(within, _TITLES)))
        case _:
            return _names_secret(name)


def _names_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None or _SECRET_NAME.search(name.lower()) is not None


def _texts(within: dict[str, Any], names: Collection[str]) -> Iterator[str]:
    """The texts that have one of these names, however it is written."""
    return (text for name, text in within.items() if name.lower() in names and isinstance(text, str))


def _is_secret_text(value: Any) -> bool:
    """Whether it is a secret whatever its name is."""
    return isinstance(value, str) and _URL_WITH_USER.fullmatch(value) is not None
