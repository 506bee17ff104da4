"""Turns Hetzner's error codes into our error tree, and keeps every word of theirs out of it.

A code is a slug, so it may be kept; a text may quote the API token, so it is not even decoded.
Codes: https://docs.hetzner.cloud/reference/cloud#errors
"""

import re
from typing import Final

import msgspec

from hydracore.reading import UNREADABLE
from workers.providers.base import (
    LATER_S_DEFAULT,
    RATE_LIMITED,
    RETRY_AFTER_S_DEFAULT,
    ProviderError,
    ProviderLater,
    ProviderNameTaken,
    ProviderNoCapacity,
    ProviderOutcomeUnknown,
    ProviderRefused,
    ProviderRetry,
)

TIMED_OUT: Final = "timeout"
NOT_FOUND: Final = "not_found"
LOCKED: Final = "locked"
INVALID_INPUT: Final = "invalid_input"

#: Ours: an answer that is not what the API describes.
UNREADABLE_ANSWER: Final = "unreadable_answer"

CLASS_OF_CODE: Final[dict[str, type[ProviderError]]] = {
    "conflict": ProviderRetry,
    RATE_LIMITED: ProviderRetry,
    TIMED_OUT: ProviderRetry,
    "bad_gateway": ProviderRetry,
    LOCKED: ProviderLater,
    "maintenance": ProviderLater,
    "unavailable": ProviderLater,
    "service_error": ProviderLater,
    "server_error": ProviderLater,
    "resource_unavailable": ProviderNoCapacity,
    "placement_error": ProviderNoCapacity,
    "invalid_server_type": ProviderNoCapacity,
    "uniqueness_error": ProviderNameTaken,
    "resource_limit_exceeded": ProviderRefused,
    "forbidden": ProviderRefused,
    "unauthorized": ProviderRefused,
    "token_readonly": ProviderRefused,
    "protected": ProviderRefused,
    # Not one that goes with an action: "the caller should contact support" (hcloud-go, hcloud/error.go).
    "resource_locked": ProviderRefused,
    INVALID_INPUT: ProviderRefused,
    "json_error": ProviderRefused,
    NOT_FOUND: ProviderRefused,
}

#: Where the code is missing or new to us, the HTTP status decides.
CLASS_OF_STATUS: Final[dict[int, type[ProviderError]]] = {
    408: ProviderRetry,
    409: ProviderRetry,
    412: ProviderNoCapacity,
    421: ProviderRetry,
    423: ProviderLater,
    425: ProviderRetry,
    429: ProviderRetry,
    502: ProviderRetry,
    504: ProviderRetry,
}

#: Somebody gave up waiting, the provider or a gateway before it.
GAVE_UP: Final = frozenset({408, 504})

#: No digits and no capitals: an API token cannot hide in a code.
CODE_PATTERN: Final = re.compile(r"[a-z][a-z_]{0,47}")
CORRELATION_ID_PATTERN: Final = re.compile(r"[0-9a-f-]{1,36}")


class _Coded(msgspec.Struct):
    code: str


class _ErrorBody(msgspec.Struct):
    error: _Coded


def error_of(
    *, status: int, body: bytes, correlation_id: str | None, mutation: bool, retry_after_s: float | None
) -> ProviderError:
    """The error that an unsuccessful answer means for the caller."""
    assert not 200 <= status < 300  # noqa: PLR2004 - the range of success in HTTP
    code = code_in(body) or f"http_{status}"
    kind = CLASS_OF_CODE.get(code) or CLASS_OF_STATUS.get(status) or _class_of_family(status)
    seen_as = correlation_id_in(correlation_id)
    if mutation and (code == TIMED_OUT or (status in GAVE_UP and code not in CLASS_OF_CODE)):
        # The change may still happen.
        return ProviderOutcomeUnknown(code, seen_as)
    if kind is ProviderRetry or kind is ProviderLater:
        # A lock goes with the action that holds it, which takes seconds.
        soon = kind is ProviderRetry or code == LOCKED or status == 423  # noqa: PLR2004 - "locked"
        usual_s = RETRY_AFTER_S_DEFAULT if soon else LATER_S_DEFAULT
        return kind(code, seen_as, retry_after_s=usual_s if retry_after_s is None else retry_after_s)
    return kind(code, seen_as)


def code_in(body: bytes) -> str | None:
    """The error code of an answer; None when the body is not the provider's (a gateway's page, say)."""
    try:
        return slug(msgspec.json.decode(body, type=_ErrorBody).error.code)
    except UNREADABLE:
        return None


def slug(code: str) -> str:
    """A code that is safe to keep."""
    return code if CODE_PATTERN.fullmatch(code) else "unreadable_code"


def correlation_id_in(text: str | None) -> str | None:
    """A correlation id that is safe to keep: hexadecimal digits and dashes, no more than a UUID has."""
    return text if text is not None and CORRELATION_ID_PATTERN.fullmatch(text) else None


def _class_of_family(status: int) -> type[ProviderError]:
    # A redirect, too, is for people to see to: the API has none, and to follow one would take the token elsewhere.
    return ProviderLater if status >= 500 else ProviderRefused  # noqa: PLR2004 - where server errors begin
