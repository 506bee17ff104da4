"""The secrets that agents hold: derived from the master key, never stored, compared by their hash.

Each is an HMAC-SHA256 (RFC 2104) of what it is for, so a worker that crashed between the intent and the effect makes
the same token again, and none needs a place to be kept. A token says whose it is (instance, attempt or key) before its
secret part, so that a check looks up one row; the prefix keeps the kinds apart and lets secret scanners find leaks.
What a former master key has made is known again by its hash, in the log, and so is the one that has made it.

    hce_<instance>_<attempt>_<secret>   enrol token, in user_data; bound to the first agent key that shows it
    hca_<instance>_<key>_<secret>       agent key: the agent calls the control plane with it
    hct_<instance>_<key>_<secret>       control token: the control plane calls the agent with it

Ids are UUIDs as 32 hex digits; secrets are 32 bytes in base64url without padding.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final, NamedTuple
from uuid import UUID

from events.ids import framed
from events.master_keys import MASTER_KEY_BYTES, MasterKeys
from hydracore import base64url

NONCE_LENGTH_MAX: Final = 128
ATTEMPT_MAX: Final = 9999

_ENROL: Final = re.compile(r"hce_([0-9a-f]{32})_([1-9][0-9]{0,3})_([A-Za-z0-9_-]{43})", re.ASCII)
_AGENT_KEY: Final = re.compile(r"hca_([0-9a-f]{32})_([0-9a-f]{32})_([A-Za-z0-9_-]{43})", re.ASCII)


class EnrolToken(NamedTuple):
    instance_id: UUID
    attempt: int


class AgentKey(NamedTuple):
    instance_id: UUID
    key_id: UUID


def enrol_token(master_key: bytes, instance_id: UUID, attempt: int, nonce: str) -> str:
    """The one-time token in the user_data of this attempt. `nonce`: the one of its `ServerIntended` event."""
    assert 1 <= attempt <= ATTEMPT_MAX
    assert 1 <= len(nonce) <= NONCE_LENGTH_MAX
    secret = _derive(master_key, "enrol", instance_id.hex, str(attempt), nonce)
    return f"hce_{instance_id.hex}_{attempt}_{secret}"


def agent_key(master_key: bytes, instance_id: UUID, key_id: UUID) -> str:
    """What the agent shows to the control plane, from its acknowledgement on."""
    return f"hca_{instance_id.hex}_{key_id.hex}_{_derive(master_key, 'agent-key', instance_id.hex, key_id.hex)}"


def control_token(master_key: bytes, instance_id: UUID, key_id: UUID) -> str:
    """What the control plane shows to the agent's own server."""
    return f"hct_{instance_id.hex}_{key_id.hex}_{_derive(master_key, 'control', instance_id.hex, key_id.hex)}"


def maker_of_key(master_keys: MasterKeys, instance_id: UUID, key_id: UUID, *, key_hash: str) -> bytes | None:
    """The master key that the agent key of this hash (hex) was derived from; None where it is not known here."""
    return master_keys.maker_of(key_hash, lambda each: hash_token(agent_key(each, instance_id, key_id)).hex())


def maker_of_enrol_token(
    master_keys: MasterKeys, instance_id: UUID, attempt: int, nonce: str, *, token_hash: str
) -> bytes | None:
    """As `maker_of_key`, for an attempt's enrol token."""
    return master_keys.maker_of(
        token_hash, lambda each: hash_token(enrol_token(each, instance_id, attempt, nonce)).hex()
    )


def held_control_token(master_keys: MasterKeys, instance_id: UUID, key_id: UUID, *, key_hash: str | None) -> str:
    """The control token that the agent got with the agent key of this hash.

    Where that was by a master key which is not known here, one that the agent refuses.
    """
    maker = None if key_hash is None else maker_of_key(master_keys, instance_id, key_id, key_hash=key_hash)
    return control_token(maker or master_keys.present, instance_id, key_id)


def hash_token(token: str) -> bytes:
    """SHA-256: all that is stored of a token. The secret has 256 bits, so no slow hash is needed."""
    return hashlib.sha256(token.encode()).digest()


def parse_enrol_token(token: str) -> EnrolToken | None:
    """Whose the token claims to be, or None when it is no enrol token. The claim is proved by its hash alone."""
    found = _ENROL.fullmatch(token)
    return EnrolToken(UUID(found[1]), int(found[2])) if found else None


def parse_agent_key(token: str) -> AgentKey | None:
    """As `parse_enrol_token`, for agent keys."""
    found = _AGENT_KEY.fullmatch(token)
    return AgentKey(UUID(found[1]), UUID(found[2])) if found else None


def _derive(master_key: bytes, purpose: str, *parts: str) -> str:
    """An HMAC of the purpose and the parts, framed."""
    assert len(master_key) == MASTER_KEY_BYTES
    digest = hmac.digest(master_key, framed("hydracore", purpose, *parts).encode(), "sha256")
    return base64url.encode(digest)
