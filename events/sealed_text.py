"""The form of a sealed text: `v1.` and the base64url of nonce and AES-256-GCM output. Has no keys of its own (see `events.keys`)."""

from __future__ import annotations

import base64
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from events.types import Sealed
from events.wrapping import NONCE_BYTES

# `events.evolve_use.looks_sealed` has the same form as a regular expression.
_PREFIX: Final = "v1."
_TAG_BYTES: Final = 16


class UndecryptableText(ValueError):
    """A sealed text that the customer's key does not decrypt: it is another customer's, or its key was lost."""


def encrypt(cipher: AESGCM, text: str, *, bound_to: bytes) -> Sealed:
    """`text`, sealed. It can be decrypted only with the same additional data `bound_to`."""
    nonce = os.urandom(NONCE_BYTES)
    sealed = cipher.encrypt(nonce, text.encode(), bound_to)
    return Sealed(_PREFIX + base64.urlsafe_b64encode(nonce + sealed).decode())


def decrypt(cipher: AESGCM, sealed: str, *, bound_to: bytes) -> str:
    """The plain text. Raises `UndecryptableText`, and `ValueError` if `sealed` has not the form of a sealed text."""
    try:
        raw = base64.urlsafe_b64decode(sealed.removeprefix(_PREFIX))
    except ValueError:
        raw = b""
    if not sealed.startswith(_PREFIX) or len(raw) < NONCE_BYTES + _TAG_BYTES:
        raise ValueError("Not a sealed field")
    try:
        return cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], bound_to).decode()
    except InvalidTag:
        raise UndecryptableText("A sealed field cannot be decrypted with its customer's key") from None
