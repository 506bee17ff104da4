"""The agent's keys, its directory on disk, and the file it boots from."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from base64 import b64decode
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hydracore.agent import VERSION
from hydracore.agent.boot_file import BOOT_FILE, BootFile, read_boot_file
from hydracore.agent.credentials import load_secrets
from hydracore.agent.errors import AlreadyRunning, BootFileInvalid, StateDamaged
from hydracore.agent.identity import load_identity
from hydracore.agent.messages import EnrollRequest, Listen, PublicKeys, Secrets
from hydracore.agent.runtime import RuntimeConfig
from hydracore.agent.state import StateDir
from tests.disk import steps_fixture

__all__ = ["steps_fixture"]


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_keys_are_generated_once_and_kept(state: StateDir) -> None:
    first = load_identity(state)
    second = load_identity(state)

    assert first.public_keys == second.public_keys
    assert len(b64decode(first.public_keys.signing)) == len(b64decode(first.public_keys.vpn)) == 32
    assert first.public_keys.signing != first.public_keys.vpn


def test_two_agents_have_different_keys(tmp_path: Path) -> None:
    one, other = load_identity(StateDir(tmp_path / "one")), load_identity(StateDir(tmp_path / "other"))

    assert one.public_keys != other.public_keys


def test_a_signature_is_valid_for_the_exact_bytes_only(state: StateDir) -> None:
    identity = load_identity(state)
    public_key = Ed25519PublicKey.from_public_bytes(b64decode(identity.public_keys.signing))

    signature = b64decode(identity.sign(b'{"a":1}'))

    public_key.verify(signature, b'{"a":1}')
    with pytest.raises(InvalidSignature):
        public_key.verify(signature, b'{"a": 1}')


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"signing": "c2hvcnQ=", "vpn": "c2hvcnQ="}'])
def test_damaged_keys_raise_and_are_not_replaced(state: StateDir, content: bytes) -> None:
    state.write("keys.json", content)

    with pytest.raises(StateDamaged, match=r"keys\.json"):
        load_identity(state)

    assert state.read("keys.json") == content


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"secrets": {"agent_key": "k"}, "acknowledged": true}'])
def test_damaged_secrets_raise(state: StateDir, content: bytes) -> None:
    state.write("secrets.json", content)

    with pytest.raises(StateDamaged, match=r"secrets\.json"):
        load_secrets(state)


# --- the state directory ---------------------------------------------------------------------------------------------


def test_files_are_accessible_to_the_agent_s_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = StateDir(tmp_path)
        state.write("a", b"1")
    finally:
        os.umask(before)

    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((state.path / "a").stat().st_mode) == 0o600


def test_a_write_is_synced_before_and_after_its_rename(state: StateDir, steps: list[str]) -> None:
    state.write("a", b"1")

    assert steps == ["fsync a.new", "rename a.new a", f"fsync {state.path.name}"]


def test_a_draft_left_by_a_crash_is_not_read_and_does_not_block_a_write(state: StateDir) -> None:
    draft = state.path / "a.new"
    draft.write_bytes(b"half of it")
    draft.chmod(0o644)

    assert state.read("a") is None
    state.write("a", b"whole")

    assert state.read("a") == b"whole"
    assert stat.S_IMODE((state.path / "a").stat().st_mode) == 0o600
    assert not draft.exists()


def test_a_state_directory_can_be_locked_by_one_agent_at_a_time(tmp_path: Path) -> None:
    first, second = StateDir(tmp_path), StateDir(tmp_path)

    with first.locked(), pytest.raises(AlreadyRunning), second.locked():
        pass
    with second.locked():
        pass


def test_retirement_is_permanent(tmp_path: Path) -> None:
    assert not StateDir(tmp_path).retired
    StateDir(tmp_path).retire()
    assert StateDir(tmp_path).retired


# --- the boot file ---------------------------------------------------------------------------------------------------

GOOD = {
    "control_plane_url": "https://hydracore.example",
    "instance_id": str(uuid4()),
    "attempt": 2,
    "enrol_token": "the-token",
}


def write_boot_file(root: Path, content: str) -> None:
    (root / BOOT_FILE).parent.mkdir(parents=True)
    (root / BOOT_FILE).write_text(content)


def test_a_valid_boot_file_is_read(tmp_path: Path) -> None:
    write_boot_file(tmp_path, json.dumps({**GOOD, "later_addition": True}))

    boot_file = read_boot_file(tmp_path)

    assert (boot_file.control_plane_url, boot_file.attempt) == ("https://hydracore.example", 2)
    assert (str(boot_file.instance_id), boot_file.enrol_token) == (GOOD["instance_id"], "the-token")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("control_plane_url", "ftp://hydracore.example"),
        ("control_plane_url", "https://"),
        ("control_plane_url", None),
        ("instance_id", "not-a-uuid"),
        ("attempt", 0),
        ("attempt", "2"),
        ("enrol_token", ""),
        ("enrol_token", 7),
    ],
)
def test_the_error_of_an_invalid_boot_file_names_the_field_but_no_secret(
    tmp_path: Path, field: str, value: object
) -> None:
    write_boot_file(tmp_path, json.dumps({**GOOD, field: value}))

    with pytest.raises(BootFileInvalid, match=field) as caught:
        read_boot_file(tmp_path)

    assert "the-token" not in str(caught.value)


# --- secrets and version ---------------------------------------------------------------------------------------------


def test_no_secret_is_in_a_repr() -> None:
    listen = Listen("127.0.0.1", 1)
    keys = PublicKeys(signing="s", vpn="v")
    shown = [
        BootFile(control_plane_url="http://x", instance_id=uuid4(), attempt=1, enrol_token="hush"),
        EnrollRequest(instance_id=uuid4(), attempt=1, token="hush", boot_id=uuid4(), public_keys=keys),
        Secrets(
            key_id="k",
            agent_key="hush",
            control_token="hush",
            listen=listen,
            heartbeat_interval_s=1,
            config_version=1,
            runtime={"system_prompt": "hush"},
        ),
        RuntimeConfig(type="expressclaw", version=1, settings={"system_prompt": "hush"}),
    ]

    assert "hush" not in repr(shown)


def test_the_agent_s_version_is_the_project_s() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())

    assert pyproject["project"]["version"] == VERSION
