"""The agent's identity: two key pairs, made once on the VPS. The private keys never leave it."""

from __future__ import annotations

from base64 import b64encode
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hydracore.agent.errors import StateDamaged
from hydracore.agent.messages import PublicKeys
from hydracore.agent.state import StateDir
from hydracore.json_input import JSON_ERRORS

_FILE = "keys.json"
_RawKey = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class StoredKeys(msgspec.Struct, frozen=True):
    """Raw private keys; base64 in the file. One file for both, so that there is never one without the other."""

    signing: _RawKey
    vpn: _RawKey

    def __repr__(self) -> str:
        return "StoredKeys()"


class Identity:
    """`signing` (Ed25519) proves the agent's requests; `vpn` (X25519) is its WireGuard key."""

    def __init__(self, *, signing: Ed25519PrivateKey, vpn: X25519PrivateKey) -> None:
        self._signing = signing
        self._vpn = vpn

    @property
    def public_keys(self) -> PublicKeys:
        return PublicKeys(
            signing=b64encode(self._signing.public_key().public_bytes_raw()).decode(),
            vpn=b64encode(self._vpn.public_key().public_bytes_raw()).decode(),
        )

    def sign(self, content: bytes) -> str:
        """Standard base64 of the Ed25519 signature of `content`."""
        return b64encode(self._signing.sign(content)).decode()

    def to_stored(self) -> StoredKeys:
        return StoredKeys(signing=self._signing.private_bytes_raw(), vpn=self._vpn.private_bytes_raw())


def load_identity(state: StateDir) -> Identity:
    """The identity on disk; on the first boot a new one, on disk before it is returned.

    Raises `StateDamaged` if the file cannot be read. It is not replaced: the control plane has bound the
    enrol token to the first keys it saw, so other keys would be refused for ever and look like an intruder's.
    """
    content = state.read(_FILE)
    if content is None:
        identity = Identity(signing=Ed25519PrivateKey.generate(), vpn=X25519PrivateKey.generate())
        state.write(_FILE, msgspec.json.encode(identity.to_stored()))
        return identity
    try:
        stored = msgspec.json.decode(content, type=StoredKeys)
    except JSON_ERRORS:
        raise StateDamaged(state.path / _FILE) from None
    return Identity(
        signing=Ed25519PrivateKey.from_private_bytes(stored.signing),
        vpn=X25519PrivateKey.from_private_bytes(stored.vpn),
    )
