"""What in a JSON document is a secret: told by names, by what stands beside them, and by what a text is."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any, Final

#: What people write between words: a blank, a dot, a hyphen, a slash, a colon, several of them, or nothing.
_BETWEEN: Final = r"[\W_]*"

#: What a secret's name has in it somewhere, in lower case.
_WORD: Final = re.compile(
    r"token|secret|passw|pass~(word|wd|code|phrase)|pwd|credential|authorization|bearer|cookie|api~key|private~key"
    r"|hook~ur[il]|connection~string|d(atabase|b)~(ur[il]|dsn)".replace("~", _BETWEEN)
)

#: What it ends with, as it is written: behind whatever is no letter, as a word of `camelCase`, or together with a word that mostly
#: stands before it there, as `monkey` and `compass` are no such names. Two of a kind may be numbered (`key-1`, `keyV2`).
_LAST_WORD: Final = re.compile(
    r"((^|[\W\d_]|(?<=[a-z])(?=[A-Z]))(?i:pass|keys?|auth|dsn)"
    r"|(?i:oauth|(db|mail|proxy|redis|smtp|user)(pass|auth|dsn)"
    r"|(access|account|auth|client|encryption|license|master|openai|pass|shared|signing|ssh|storage)keys?))"
    r"[\W\d_]*([vV][\d.]+)?[\W_]*\Z"
)
#: It is looked for in no more than so many last characters.
_LAST_LENGTH: Final = 32

#: Texts are read as names up to this length. What is longer names a secret for all that is known.
NAME_LENGTH_MAX: Final = 1_000

#: The half of a pair that says what its `value` is, as in `{"name": "Authorization", "value": "Bearer ..."}`.
_TITLES: Final = frozenset({"name", "key", "header"})

#: In lower case, with whatever stands between its letters.
_WEBHOOK: Final = re.compile("[^a-z]*".join("webhook"))

#: A URL with user information (RFC 3986, section 3.2.1): mostly a password, or a token in place of one.
_URL_WITH_USER: Final = re.compile(r"\s*([a-z][a-z0-9+.-]*:)+//[^/?#\s@]+@\S*\s*", re.ASCII | re.IGNORECASE)


class SecretNames:
    """Which names in one object, which must stay as it is, are those of secrets: `"token" in SecretNames(within)`."""

    def __init__(self, within: dict[str, Any]) -> None:
        self._within = within

    def __contains__(self, name: str) -> bool:
        match lowered := name.lower():
            case "url":
                return self._is_webhook
            case "value":
                return self._is_of_a_secret
            case _:
                return _names_secret(name, lowered)

    # Each is asked for once, however many spellings of `value` stand beside the texts.

    @cached_property
    def _is_webhook(self) -> bool:
        return any(len(text) > NAME_LENGTH_MAX or _WEBHOOK.search(text.lower()) for text in self._texts({"type"}))

    @cached_property
    def _is_of_a_secret(self) -> bool:
        return any(_names_secret(text, text.lower()) for text in self._texts(_TITLES))

    def _texts(self, names: Collection[str]) -> Iterator[str]:
        """The texts that have one of these names, however it is written."""
        return (text for name, text in self._within.items() if isinstance(text, str) and name.lower() in names)


def _names_secret(name: str, lowered: str) -> bool:
    return (
        len(name) > NAME_LENGTH_MAX
        or _WORD.search(lowered) is not None
        # Not in a part of it: what is before these characters may go on in them.
        or _LAST_WORD.search(name, max(0, len(name) - _LAST_LENGTH)) is not None
    )


def is_secret_text(value: Any) -> bool:
    """Whether it is a secret whatever its name is."""
    return isinstance(value, str) and "@" in value and _URL_WITH_USER.fullmatch(value) is not None
