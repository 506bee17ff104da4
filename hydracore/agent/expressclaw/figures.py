"""What an endpoint says a call has cost. No answer is lost over it: figures that cannot be are as good as none."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from hydracore.agent.messages import TOKENS_MAX

#: Of tokens.
Figure = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]

F = TypeVar("F", bound=msgspec.Struct)


def read_figures(usage: Any, kind: type[F]) -> F | None:
    """`usage` as JSON had it; None where it does not say what `kind` asks for, in numbers that a call can have."""
    try:
        # Some write whole numbers as 7.0 or "7".
        return msgspec.convert(usage, kind, strict=False)
    except ValueError:
        # A figure may be half of a character, which msgspec cannot even look at.
        return None
