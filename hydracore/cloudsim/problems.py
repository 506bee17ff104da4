"""Answers of the API, and errors in Hetzner's shape: `{"error": {"code", "message", "details"}}`."""

from collections.abc import Mapping
from typing import Any

import msgspec


class Reply(msgspec.Struct, frozen=True):
    """The answer of an operation. `body` is JSON data, or bytes that are sent as they are (a gateway's page)."""

    status: int
    body: Any
    headers: Mapping[str, str] = {}


class ApiError(Exception):
    """An operation is refused, and has changed nothing."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.headers = headers or {}

    def reply(self) -> Reply:
        error = {"code": self.code, "message": self.message, "details": self.details}
        return Reply(self.status, {"error": error}, self.headers)


def invalid_input(field: str, message: str) -> ApiError:
    """A field of the request is not acceptable."""
    details = {"fields": [{"name": field, "messages": [message]}]}
    return ApiError(422, "invalid_input", f"invalid input in field '{field}'", details=details)


def not_found(kind: str, number: object) -> ApiError:
    return ApiError(404, "not_found", f"{kind} with ID '{number}' not found")


def already_used(field: str) -> ApiError:
    details = {"fields": [{"name": field}]}
    return ApiError(409, "uniqueness_error", f"{field} is already used", details=details)


def locked() -> ApiError:
    return ApiError(423, "locked", "cannot perform operation because resource is locked")
