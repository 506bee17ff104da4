"""Media types, which are compared in lower case and without parameters (RFC 9110, section 8.3.1)."""

from __future__ import annotations

from typing import Final

EVENT_STREAM: Final = "text/event-stream"
JSON: Final = "application/json"


def media_type(content_type: str) -> str:
    """The media type of a `Content-Type` header. Empty if it has none."""
    return content_type.partition(";")[0].strip().lower()
