"""Derived tokens: repeatable, all different, and strict about their form."""

import json
from collections.abc import Callable
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.master_keys import MasterKeys
from events.state import Attempt
from hydracore import tokens
from workers.user_data import server_name, user_data

MASTER = bytes(range(32))
INSTANCE = UUID("5f0f5ad3-2f0b-5a6e-9f7a-0d5c7d1d3b11")
KEY = UUID("9d2f2a53-7d8f-4a7b-8f6a-1d2c3b4a5f60")


def test_the_same_inputs_give_the_same_token() -> None:
    first = tokens.enrol_token(MASTER, INSTANCE, 2, "nonce")

    again = tokens.enrol_token(bytes(MASTER), UUID(str(INSTANCE)), 2, "nonce")

    assert first == again
    assert first.startswith("hce_5f0f5ad32f0b5a6e9f7a0d5c7d1d3b11_2_")


def test_every_input_changes_the_secret_of_a_token() -> None:
    made = [
        tokens.enrol_token(MASTER, INSTANCE, 1, "nonce"),
        tokens.enrol_token(MASTER, INSTANCE, 2, "nonce"),
        tokens.enrol_token(MASTER, INSTANCE, 1, "other"),
        tokens.enrol_token(MASTER, KEY, 1, "nonce"),
        tokens.enrol_token(bytes(32), INSTANCE, 1, "nonce"),
        tokens.agent_key(MASTER, INSTANCE, KEY),
        tokens.agent_key(MASTER, KEY, INSTANCE),
        tokens.control_token(MASTER, INSTANCE, KEY),
    ]

    secrets = {token[-43:] for token in made}

    assert len(secrets) == len(made)


def test_an_agent_key_made_with_a_former_master_key_is_recognised() -> None:
    old, older = bytes(32), bytes(range(1, 33))
    keys = MasterKeys(MASTER, (older, old))
    by_older = tokens.hash_token(tokens.agent_key(older, INSTANCE, KEY)).hex()
    unknown = tokens.hash_token(tokens.agent_key(b"x" * 32, INSTANCE, KEY)).hex()

    assert list(keys) == [MASTER, old, older]
    assert tokens.master_key_of_agent_key(keys, INSTANCE, KEY, key_hash=by_older) == older
    assert tokens.master_key_of_agent_key(keys, INSTANCE, KEY, key_hash=unknown) is None
    held = [tokens.held_control_token(keys, INSTANCE, KEY, key_hash=key_hash) for key_hash in (by_older, unknown, None)]
    assert held == [tokens.control_token(maker, INSTANCE, KEY) for maker in (older, MASTER, MASTER)]


@pytest.mark.parametrize("maker", [MASTER, bytes(32)], ids=["present", "former"])
def test_the_user_data_of_a_server_has_the_intended_enrol_token(maker: bytes) -> None:
    intended = tokens.enrol_token(maker, INSTANCE, 1, "nonce")
    attempt = Attempt(
        number=1,
        provider="p",
        server_type="t",
        location="l",
        image="i",
        enrol_nonce="nonce",
        enrol_token_hash=tokens.hash_token(intended).hex(),
    )

    text_for_server = user_data(
        control_plane_url="http://x", instance_id=INSTANCE, attempt=attempt, master_keys=MasterKeys(MASTER, [bytes(32)])
    )

    assert intended in text_for_server
    (file,) = json.loads(text_for_server.removeprefix("#cloud-config"))["write_files"]
    assert (file["path"], file["permissions"]) == ("/etc/hydracore/agent.json", "0600")
    assert json.loads(file["content"]) == {
        "control_plane_url": "http://x",
        "instance_id": str(INSTANCE),
        "attempt": 1,
        "enrol_token": intended,
    }


def test_the_name_of_an_instance_s_server_never_changes() -> None:
    """A server is found again by its name, whichever release asked for it."""
    assert server_name(INSTANCE) == "hc-5f0f5ad3-2f0b-5a6e-9f7a-0d5c7d1d3b11"


def test_moving_a_digit_between_attempt_and_nonce_changes_the_secret() -> None:
    assert tokens.enrol_token(MASTER, INSTANCE, 1, "12")[-43:] != tokens.enrol_token(MASTER, INSTANCE, 11, "2")[-43:]


def test_a_token_names_its_instance_and_its_attempt_or_key() -> None:
    enrol = tokens.parse_enrol_token(tokens.enrol_token(MASTER, INSTANCE, 4, "nonce"))
    key = tokens.parse_agent_key(tokens.agent_key(MASTER, INSTANCE, KEY))

    assert enrol == (INSTANCE, 4)
    assert key == (INSTANCE, KEY)


def test_one_kind_of_token_is_not_taken_for_another() -> None:
    key = tokens.agent_key(MASTER, INSTANCE, KEY)
    control = tokens.control_token(MASTER, INSTANCE, KEY)

    assert tokens.parse_agent_key(control) is None
    assert tokens.parse_enrol_token(key) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda token: "",
        lambda token: token[:-1],
        lambda token: token + "A",
        lambda token: token + "\n",
        lambda token: " " + token,
        lambda token: token.upper(),
        lambda token: token.replace("hca_", "hcz_"),
        lambda token: token.replace("_", "-", 1),
        lambda token: token[:-1] + "=",
        lambda token: token[:-1] + "é",
        lambda token: token.replace("5f0f", "5g0f"),
        lambda token: token.replace("5f0f", "\uff15f0f"),  # a full-width digit
    ],
    ids=[
        "empty",
        "short",
        "long",
        "newline",
        "space",
        "upper",
        "prefix",
        "separator",
        "padding",
        "letter",
        "no-hex",
        "full-width",
    ],
)
def test_malformed_agent_keys_are_refused(change: Callable[[str], str]) -> None:
    assert tokens.parse_agent_key(change(tokens.agent_key(MASTER, INSTANCE, KEY))) is None


@given(st.text(max_size=200))
def test_arbitrary_text_is_not_accepted_as_a_token(text: str) -> None:
    assert tokens.parse_enrol_token(text) is None
    assert tokens.parse_agent_key(text) is None


def test_a_hash_is_sha256_of_the_whole_token() -> None:
    assert tokens.hash_token("abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
