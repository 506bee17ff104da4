"""Wraps customers' keys for the database: encrypted with a key derived from the master key, and bound to tenant and customer."""

from __future__ import annotations

import hmac
import os
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from events.ids import length_prefixed
from events.master_keys import MasterKeys

NONCE_BYTES = 12


class UnwrappedKey(NamedTuple):
    """A customer's key, and whether it was wrapped with the present master key."""

    key: bytes
    by_present: bool

    def __repr__(self) -> str:
        return f"UnwrappedKey('***', by_present={self.by_present})"


class KeyWrapper:
    """Wraps with the present master key, and unwraps with the present and the former ones."""

    def __init__(self, master_keys: MasterKeys) -> None:
        self._present, *self._former = (AESGCM(derive(key, b"wrap customer keys")) for key in master_keys)

    def wrap(self, key: bytes, tenant_id: str, customer_id: str) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._present.encrypt(nonce, key, _bound_to(tenant_id, customer_id))

    def unwrap(self, wrapped: bytes, tenant_id: str, customer_id: str) -> UnwrappedKey | None:
        """The key; None if no master key unwraps it: it is damaged, another customer's, or wrapped with an unknown master key."""
        bound_to = _bound_to(tenant_id, customer_id)
        for cipher in (self._present, *self._former):
            try:
                key = cipher.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], bound_to)
            except (InvalidTag, ValueError):  # A `ValueError` is a nonce of another length.
                continue
            return UnwrappedKey(key, by_present=cipher is self._present)
        return None


def derive(master_key: bytes, purpose: bytes) -> bytes:
    """32 bytes for one purpose."""
    return hmac.digest(master_key, b"hydracore/1/" + purpose, sha256)


def bind(*parts: str) -> bytes:
    """The additional data that binds a ciphertext to these parts."""
    return length_prefixed(*parts).encode()


def _bound_to(tenant_id: str, customer_id: str) -> bytes:
    return bind(tenant_id, customer_id, "key")
