"""What in a JSON document is a secret: told by names, by what stands beside them, and by what a text is."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Final

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


def is_secret(name: str, within: dict[str, Any]) -> bool:
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


def is_secret_text(value: Any) -> bool:
    """Whether it is a secret whatever its name is."""
    return isinstance(value, str) and _URL_WITH_USER.fullmatch(value) is not None
