"""How large the parts of a configuration may be, however large requests may be: an agent reads 2 MiB as a whole.

The other parts are bounded in characters (see `schemas`); at their longest, together, they leave that much.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from hydracore.api.errors import RequestInvalid
from hydracore.documents import TOO_MANY, VALUES_MAX, masked, values_in
from hydracore.problems import Problem

#: What `advanced`, `channels`, `integrations` and `skills` may grow to, each of them.
DOCUMENT_MAX_BYTES: Final = 256 * 1024

SLUGS_MAX_BYTES: Final = 64 * 1024

#: What a request for a configuration may have, whatever the setting says: all parts at their longest, at once, fit as UTF-8. With
#: every character escaped (`\ud83d\ude00`), as many JSON writers have them, all of `config` fit, and any two documents: room for four
#: would double how long the reading of a body of many small values (a second) keeps everybody else waiting.
BODY_BYTES: Final = 2 * 1024 * 1024


def slugs_complaint(given: list[Any]) -> str | None:
    """What is wrong with the `workflow_slugs` of a request as a whole, if anything is."""
    return _size_complaint(given, SLUGS_MAX_BYTES)


def _size_complaint(value: Any, max_bytes: int) -> str | None:
    return f"it would have more than {max_bytes} bytes" if len(msgspec.json.encode(value)) > max_bytes else None


def require_room(field: str, value: Any, *, max_bytes: int = DOCUMENT_MAX_BYTES) -> None:
    """Raises `RequestInvalid` where `value` would have more, as JSON, or more values than a document may have."""
    complaint = _size_complaint(value, max_bytes)
    if complaint is not None:
        raise RequestInvalid([Problem(("body", field), f"Value error, {complaint}", "value_error")])
    if values_in(value) > VALUES_MAX:
        raise RequestInvalid([Problem(("body", field), TOO_MANY, "value_error")])


def slugs(given: list[Any] | None) -> tuple[str, ...]:
    """The `workflow_slugs` of a request: what is no text becomes its JSON, so that whoever looks for such a workflow tells of it as of
    any other that there is not. Nothing here is sealed, so secrets are masked.

    Raises `RequestInvalid` where they are too many to hand on.
    """
    texts = tuple(each if isinstance(each, str) else msgspec.json.encode(masked(each)).decode() for each in given or ())
    require_room("workflow_slugs", texts, max_bytes=SLUGS_MAX_BYTES)
    return texts
