"""Pages of a list: the cursor after the last item of a page, and the link to the next page (RFC 8288)."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urlencode
from uuid import UUID

from hydracore import base64url


def cursor_after(created_at: str, instance_id: str) -> str:
    """The cursor of the page after the instance created at `created_at`."""
    return base64url.encode(f"{created_at}/{instance_id}".encode())


def read_cursor(cursor: str) -> tuple[datetime, UUID]:
    """The arguments of `cursor_after`. Raises `ValueError` and `OverflowError` for an invalid cursor."""
    created_at, _, instance_id = base64url.decode(cursor).decode().partition("/")
    return datetime.fromisoformat(created_at).astimezone(UTC), UUID(instance_id)


def cursor_error(text: str) -> str | None:
    """What is wrong with `text` as a cursor, or None."""
    try:
        read_cursor(text)
    except (ValueError, OverflowError):
        # From base64, text, time and UUID alike.
        return "not a cursor of this list"
    return None


def next_link(path: str, parameters: dict[str, str]) -> tuple[bytes, bytes]:
    """The `Link` header to the next page. Its path is relative to the origin of the request."""
    return b"link", f'<{path}?{urlencode(parameters)}>; rel="next"'.encode()
