"""The secrets that agents hold: derived from the master key, never stored, compared by their hash.

Each is an HMAC-SHA256 (RFC 2104) of its purpose. So a worker that crashed between the intent and the effect derives the
same token again, and no token has to be stored. A token names its owner (instance, and attempt or key) before its
secret part, so that checking it looks up one row. The prefix tells the kinds apart and lets secret scanners find leaks.
Tokens of a former master key, and that key, are recognized by the token's hash, which is in the log.

    hce_<instance>_<attempt>_<secret>   enrol token, in user_data; bound to the first agent key that presents it
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

from events.ids import length_prefixed
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
    """The one-time token in the user_data of an attempt. `nonce`: from the attempt's `ServerIntended` event."""
    assert 1 <= attempt <= ATTEMPT_MAX
    assert 1 <= len(nonce) <= NONCE_LENGTH_MAX
    secret = _derive(master_key, "enrol", instance_id.hex, str(attempt), nonce)
    return f"hce_{instance_id.hex}_{attempt}_{secret}"


def agent_key(master_key: bytes, instance_id: UUID, key_id: UUID) -> str:
    """The key that the agent presents to the control plane, once it has acknowledged it."""
    return f"hca_{instance_id.hex}_{key_id.hex}_{_derive(master_key, 'agent-key', instance_id.hex, key_id.hex)}"


def control_token(master_key: bytes, instance_id: UUID, key_id: UUID) -> str:
    """The token that the control plane presents to the agent's HTTP server."""
    return f"hct_{instance_id.hex}_{key_id.hex}_{_derive(master_key, 'control', instance_id.hex, key_id.hex)}"


def master_key_of_agent_key(master_keys: MasterKeys, instance_id: UUID, key_id: UUID, *, key_hash: str) -> bytes | None:
    """The master key that the agent key with this hash (hex) was derived from; None if the configuration lacks it."""
    return master_keys.find_key(key_hash, lambda each: hash_token(agent_key(each, instance_id, key_id)).hex())


def master_key_of_enrol_token(
    master_keys: MasterKeys, instance_id: UUID, attempt: int, nonce: str, *, token_hash: str
) -> bytes | None:
    """The same for the enrol token of an attempt."""
    return master_keys.find_key(
        token_hash, lambda each: hash_token(enrol_token(each, instance_id, attempt, nonce)).hex()
    )


def held_control_token(master_keys: MasterKeys, instance_id: UUID, key_id: UUID, *, key_hash: str | None) -> str:
    """The control token that the agent received together with the agent key of this hash.

    If the configuration does not have the master key that it was derived from, returns one that the agent refuses.
    """
    master_key = (
        None if key_hash is None else master_key_of_agent_key(master_keys, instance_id, key_id, key_hash=key_hash)
    )
    return control_token(master_key or master_keys.present, instance_id, key_id)


def hash_token(token: str) -> bytes:
    """The SHA-256 of a token, all that is stored of it. Secrets have 256 bits, so that no slow hash is needed."""
    return hashlib.sha256(token.encode()).digest()


def parse_enrol_token(token: str) -> EnrolToken | None:
    """The owner that the token names, or None if it is no enrol token. Only its hash proves that it is genuine."""
    found = _ENROL.fullmatch(token)
    return EnrolToken(UUID(found[1]), int(found[2])) if found else None


def parse_agent_key(token: str) -> AgentKey | None:
    """The same for agent keys."""
    found = _AGENT_KEY.fullmatch(token)
    return AgentKey(UUID(found[1]), UUID(found[2])) if found else None


def _derive(master_key: bytes, purpose: str, *parts: str) -> str:
    """An HMAC of the purpose and the parts, each with its length."""
    assert len(master_key) == MASTER_KEY_BYTES
    digest = hmac.digest(master_key, length_prefixed("hydracore", purpose, *parts).encode(), "sha256")
    return base64url.encode(digest)
