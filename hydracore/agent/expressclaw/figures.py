"""Reads the usage figures of an endpoint. Impossible figures count as missing, so that no answer is lost over them."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from hydracore.agent.messages import TOKENS_MAX

#: A number of tokens.
Figure = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]

F = TypeVar("F", bound=msgspec.Struct)


def read_figures(usage: Any, kind: type[F]) -> F | None:
    """Convert `usage`, as decoded from JSON, to `kind`. None if a figure of `kind` is missing or impossible."""
    try:
        # Some write whole numbers as 7.0 or "7".
        return msgspec.convert(usage, kind, strict=False)
    except ValueError:
        # Not only msgspec's errors: a figure may be a text with a lone surrogate, for which it raises UnicodeError.
        return None
