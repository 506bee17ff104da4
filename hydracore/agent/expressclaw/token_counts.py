"""Reads the token counts that an endpoint reports. Impossible ones count as missing, so that no answer is lost over them."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from hydracore.agent.messages import TOKENS_MAX

#: A number of tokens.
TokenCount = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]

F = TypeVar("F", bound=msgspec.Struct)


def read_token_counts(usage: Any, kind: type[F]) -> F | None:
    """Convert `usage`, as decoded from JSON, to `kind`. None if a count of `kind` is missing or impossible."""
    try:
        # Some write whole numbers as 7.0 or "7".
        return msgspec.convert(usage, kind, strict=False)
    except ValueError:
        # Not only msgspec's errors: a count may be a text with a lone surrogate, for which it raises UnicodeError.
        return None
