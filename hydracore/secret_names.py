"""What in a JSON document is a secret, by its name, by its sibling fields, or by its own form."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any, Final

#: Separators between words: spaces, dots, hyphens, slashes, colons, several of them, or nothing.
_SEPARATORS: Final = r"[\W_]*"

#: Words anywhere in a secret's name, in lower case.
_WORD: Final = re.compile(
    r"token|secret|passw|pass~(word|wd|code|phrase)|pwd|credential|authorization|bearer|cookie|api~key|private~key"
    r"|hook~ur[il]|connection~string|d(atabase|b)~(ur[il]|dsn)".replace("~", _SEPARATORS)
)

#: Words at the end of a secret's name: after a character that is no letter, as a word of `camelCase`, or after a word
#: that often precedes them (`monkey` and `compass` must not match). A number may follow (`key-1`, `keyV2`).
_LAST_WORD: Final = re.compile(
    r"((^|[\W\d_]|(?<=[a-z])(?=[A-Z]))(?i:pass|keys?|auth|dsn)"
    r"|(?i:oauth|(db|mail|proxy|redis|smtp|user)(pass|auth|dsn)"
    r"|(access|account|auth|client|encryption|license|master|openai|pass|shared|signing|ssh|storage)keys?))"
    r"[\W\d_]*([vV][\d.]+)?[\W_]*\Z"
)
#: `_LAST_WORD` is searched for in at most this many last characters.
_LAST_LENGTH: Final = 32

#: The longest text that is checked as a name. Anything longer counts as the name of a secret.
NAME_LENGTH_MAX: Final = 1_000

#: The names of the half of a pair that describes its `value`, as in `{"name": "Authorization", "value": "Bearer ..."}`.
_DESCRIBING_NAMES: Final = frozenset({"name", "key", "header"})

#: In lower case, with any characters between its letters that are no letters.
_WEBHOOK: Final = re.compile("[^a-z]*".join("webhook"))

#: A URL with user information (RFC 3986, section 3.2.1), which mostly holds a password or a token.
_URL_WITH_USER: Final = re.compile(r"\s*([a-z][a-z0-9+.-]*:)+//[^/?#\s@]+@\S*\s*", re.ASCII | re.IGNORECASE)


class SecretNames:
    """The names in one object that are secrets' names: `"token" in SecretNames(fields)`. `fields` must not change."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __contains__(self, name: str) -> bool:
        match lowered := name.lower():
            case "url":
                return self._is_webhook
            case "value":
                return self._is_value_secret
            case _:
                return _is_secret_name(name, lowered)

    # Both are computed once, however many spellings of `value` and `url` the object has.

    @cached_property
    def _is_webhook(self) -> bool:
        return any(len(text) > NAME_LENGTH_MAX or _WEBHOOK.search(text.lower()) for text in self._texts({"type"}))

    @cached_property
    def _is_value_secret(self) -> bool:
        return any(_is_secret_name(text, text.lower()) for text in self._texts(_DESCRIBING_NAMES))

    def _texts(self, names: Collection[str]) -> Iterator[str]:
        """The texts under these names, in upper or lower case."""
        return (text for name, text in self._fields.items() if isinstance(text, str) and name.lower() in names)


def _is_secret_name(name: str, lowered: str) -> bool:
    return (
        len(name) > NAME_LENGTH_MAX
        or _WORD.search(lowered) is not None
        # An offset and not a slice: `^` must not match there, and the lookbehind must see the characters before it.
        or _LAST_WORD.search(name, max(0, len(name) - _LAST_LENGTH)) is not None
    )


def is_secret_text(value: Any) -> bool:
    """Whether `value` is a secret under any name."""
    return isinstance(value, str) and "@" in value and _URL_WITH_USER.fullmatch(value) is not None
