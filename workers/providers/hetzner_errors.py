"""Turns Hetzner's error answers into our error classes. Of an answer, only the code and the correlation id are kept.

A code is a slug and holds no secret. A text may quote the API token, so it is not even decoded.
Codes: https://docs.hetzner.cloud/reference/cloud#errors
"""

import re
from typing import Final

import msgspec

from hydracore.json_input import JSON_ERRORS
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
    ProviderWait,
)

TIMED_OUT: Final = "timeout"
NOT_FOUND: Final = "not_found"
LOCKED: Final = "locked"
INVALID_INPUT: Final = "invalid_input"

#: Our own code: the answer does not match the description of the API.
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
    # Not a lock that an action holds, like `locked`: "the caller should contact support" (hcloud-go, hcloud/error.go).
    "resource_locked": ProviderRefused,
    INVALID_INPUT: ProviderRefused,
    "json_error": ProviderRefused,
    NOT_FOUND: ProviderRefused,
}

#: The class by HTTP status, if the code is missing or unknown.
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

#: The statuses with which the provider, or a gateway before it, says that it gave up waiting.
TIMEOUT_STATUSES: Final = frozenset({408, 504})

#: Without digits and capitals, so that a code cannot hold an API token.
CODE_PATTERN: Final = re.compile(r"[a-z][a-z_]{0,47}")
CORRELATION_ID_PATTERN: Final = re.compile(r"[0-9a-f-]{1,36}")


class _Coded(msgspec.Struct):
    code: str


class _ErrorBody(msgspec.Struct):
    error: _Coded


def error_of(
    *, status: int, body: bytes, correlation_id: str | None, mutation: bool, retry_after_s: float | None
) -> ProviderError:
    """The error to raise for an unsuccessful answer. `mutation`: whether the request was a change."""
    assert not 200 <= status < 300  # noqa: PLR2004 - the range of success in HTTP
    code = code_in(body) or f"http_{status}"
    kind = CLASS_OF_CODE.get(code) or CLASS_OF_STATUS.get(status) or _class_of_family(status)
    kept_id = correlation_id_in(correlation_id)
    if mutation and (code == TIMED_OUT or (status in TIMEOUT_STATUSES and code not in CLASS_OF_CODE)):
        # The change may still happen.
        return ProviderOutcomeUnknown(code, kept_id)
    if issubclass(kind, ProviderWait):
        # A lock is released when its action ends, which takes seconds.
        soon = kind is ProviderRetry or code == LOCKED or status == 423  # noqa: PLR2004 - "locked"
        usual_s = RETRY_AFTER_S_DEFAULT if soon else LATER_S_DEFAULT
        return kind(code, kept_id, retry_after_s=usual_s if retry_after_s is None else retry_after_s)
    return kind(code, kept_id)


def code_in(body: bytes) -> str | None:
    """The error code in the body of an answer, or None if the body is not the provider's, for instance a gateway's page."""
    try:
        return safe_code(msgspec.json.decode(body, type=_ErrorBody).error.code)
    except JSON_ERRORS:
        return None


def safe_code(code: str) -> str:
    """`code` if it is safe to keep, otherwise `unreadable_code`."""
    return code if CODE_PATTERN.fullmatch(code) else "unreadable_code"


def correlation_id_in(text: str | None) -> str | None:
    """The correlation id if it is safe to keep (hexadecimal digits and dashes, no longer than a UUID), otherwise None."""
    return text if text is not None and CORRELATION_ID_PATTERN.fullmatch(text) else None


def _class_of_family(status: int) -> type[ProviderError]:
    # Redirects count as refusals: the API has none, and following one would send the token elsewhere.
    return ProviderLater if status >= 500 else ProviderRefused  # noqa: PLR2004 - where server errors begin
