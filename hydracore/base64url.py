"""Base64 for URLs and headers (RFC 4648, section 5), written without padding."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode


def encode(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Characters that are none of its own are passed over. Raises `ValueError`, mostly as `binascii.Error`."""
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
