"""`If-Match` (RFC 9110, section 13.1.1): a configuration is changed only at the version that its caller has seen."""

from __future__ import annotations

import re
from typing import Annotated, Final

from msgspec import Meta

from events.state import Instance
from hydracore.api.errors import PreconditionFailed
from hydracore.api.validation import Header

_TAG: Final = r'(?:W/)?"[^"]*"'
#: A list may have empty elements (RFC 9110, section 5.6.1.2).
_HEADER: Final = re.compile(rf"\*|[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
_TAGS: Final = re.compile(_TAG)

#: The parameter of an operation that changes the configuration.
IfMatch = Annotated[Annotated[str, Meta(extra={"check": "if_match"})] | None, Header("If-Match")]


def if_match_error(text: str) -> str | None:
    """What is wrong with `text` as an `If-Match` header, or None."""
    return None if _HEADER.fullmatch(text) else 'give the config_version in quotes, such as "7", or *'


def require_match(if_match: str, state: Instance) -> None:
    """Raises `PreconditionFailed` where `if_match` does not name the present version of the configuration.

    Weak tags name none: RFC 9110 has them fail here.
    """
    version = state.config.version
    if if_match != "*" and f'"{version}"' not in _TAGS.findall(if_match):
        raise PreconditionFailed(f"The configuration is at version {version}; read it again")
