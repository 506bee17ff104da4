"""Pages of a list: a cursor that says where the last page ended, and the link to the next (RFC 8288)."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urlencode
from uuid import UUID

from hydracore import base64url


def cursor_after(created_at: str, instance_id: str) -> str:
    """The cursor of the page that follows the instance made at `created_at`."""
    return base64url.encode(f"{created_at}/{instance_id}".encode())


def read_cursor(cursor: str) -> tuple[datetime, UUID]:
    """What `cursor_after` was given. Raises `ValueError` and `OverflowError` for what `cursor_complaint` complains of."""
    created_at, _, instance_id = base64url.decode(cursor).decode().partition("/")
    return datetime.fromisoformat(created_at).astimezone(UTC), UUID(instance_id)


def cursor_complaint(text: str) -> str | None:
    """What is wrong with `text` as a cursor, if anything is."""
    try:
        read_cursor(text)
    except (ValueError, OverflowError):
        # Errors of base64, text, time and UUID alike.
        return "not a cursor of this list"
    return None


def next_link(path: str, parameters: dict[str, str]) -> tuple[bytes, bytes]:
    """The `Link` header to the next page, relative to where this one was asked for."""
    return b"link", f'<{path}?{urlencode(parameters)}>; rel="next"'.encode()
