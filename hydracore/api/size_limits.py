"""Size limits of the parts of a configuration, whatever the limit of requests: an agent accepts 2 MiB in total.

The other parts are limited in characters (see `schemas`). With all parts at their limits, the total stays below that.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from hydracore.api.errors import RequestInvalid
from hydracore.documents import TOO_MANY, VALUES_MAX, count_values, masked
from hydracore.problems import Problem

#: The most bytes of each of `advanced`, `channels`, `integrations` and `skills`.
DOCUMENT_BYTES_MAX: Final = 256 * 1024

SLUGS_BYTES_MAX: Final = 64 * 1024

#: The largest request for a configuration, whatever the setting for bodies says. All parts at their limits fit as
#: UTF-8. With every character escaped (`\ud83d\ude00`), as many JSON writers do, all of `config` fits, and any two
#: documents. Room for four would double the second that reading a body of many small values may block other requests.
BODY_BYTES: Final = 2 * 1024 * 1024


def slugs_size_error(given: list[Any]) -> str | None:
    """What is wrong with the size of a request's `workflow_slugs`, or None."""
    return _size_error(given, SLUGS_BYTES_MAX)


def _size_error(value: Any, bytes_max: int) -> str | None:
    return f"it must not exceed {bytes_max} bytes" if len(msgspec.json.encode(value)) > bytes_max else None


def require_within_limits(field: str, value: Any, *, bytes_max: int = DOCUMENT_BYTES_MAX) -> None:
    """Raises `RequestInvalid` where `value` has more than `bytes_max` as JSON, or more than `VALUES_MAX` values."""
    error = _size_error(value, bytes_max)
    if error is not None:
        raise RequestInvalid([Problem(("body", field), f"Value error, {error}", "value_error")])
    if count_values(value) > VALUES_MAX:
        raise RequestInvalid([Problem(("body", field), TOO_MANY, "value_error")])


def slug_texts(given: list[Any] | None) -> tuple[str, ...]:
    """The `workflow_slugs` of a request as texts.

    Values that are not texts become JSON, so that they are reported like any other unknown workflow. Secrets in them
    are masked, because slugs are not sealed. Raises `RequestInvalid` where they are too large.
    """
    texts = tuple(each if isinstance(each, str) else msgspec.json.encode(masked(each)).decode() for each in given or ())
    require_within_limits("workflow_slugs", texts, bytes_max=SLUGS_BYTES_MAX)
    return texts
