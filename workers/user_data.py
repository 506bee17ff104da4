"""The user data of a new server: the control plane's URL, the instance and a one-time token. No more, as clouds keep it readable."""

from __future__ import annotations

import secrets
from uuid import UUID

import msgspec

from events.master_keys import MasterKeys
from events.state import Attempt
from hydracore.tokens import enrol_token, master_key_of_enrol_token

AGENT_FILE = "/etc/hydracore/agent.json"


def new_nonce() -> str:
    """A random nonce that makes the enrol token of an attempt unique. It is kept in the log; without the master key it is of no use."""
    return secrets.token_hex(16)


def server_name(instance_id: UUID) -> str:
    """The server's name at the provider. Names are unique per project, so the provider refuses a second server of an instance."""
    return f"hc-{instance_id}"


def user_data(*, control_plane_url: str, instance_id: UUID, attempt: Attempt, master_keys: MasterKeys) -> str:
    """A cloud-config for cloud-init, in JSON (which is YAML): it writes the agent's boot file and starts the agent."""
    nonce, token_hash = attempt.enrol_nonce, attempt.enrol_token_hash
    assert nonce is not None, "an intent has a nonce"
    assert token_hash is not None, "an intent has the hash of its token"
    # The intent may be older than the present master key. If its key is no longer configured, the API would refuse its token anyway.
    master_key = master_key_of_enrol_token(master_keys, instance_id, attempt.number, nonce, token_hash=token_hash)
    boot = {
        "control_plane_url": control_plane_url,
        "instance_id": str(instance_id),
        "attempt": attempt.number,
        "enrol_token": enrol_token(master_key or master_keys.present, instance_id, attempt.number, nonce),
    }
    config = {
        "write_files": [{"path": AGENT_FILE, "permissions": "0600", "content": msgspec.json.encode(boot).decode()}],
        "runcmd": [["systemctl", "enable", "--now", "hydracore-agent.service"]],
    }
    return "#cloud-config\n" + msgspec.json.encode(config).decode()
