"""The bytes from which ids, secrets, ciphertext and reservations are made: they never change."""

from uuid import UUID

from events.ids import instance_id_for, length_prefixed
from events.wrapping import bind
from hydracore import tokens
from projections.reservation import idempotency_value

MASTER = bytes(range(32))
INSTANCE = UUID("5f0f5ad3-2f0b-5a6e-9f7a-0d5c7d1d3b11")
KEY = UUID("9d2f2a53-7d8f-4a7b-8f6a-1d2c3b4a5f60")


def test_ids_and_tokens_made_of_length_prefixed_parts_never_change() -> None:
    plain = instance_id_for(tenant_id="acme", customer_id="ada", idempotency_key="first")
    accented = instance_id_for(tenant_id="acme", customer_id="ada", idempotency_key="zwölf")

    assert plain == UUID("23842209-5596-5f35-ada4-b62d06ab89f2")
    assert accented == UUID("db7d7753-8308-5ab2-89dd-2d85c8536b12")
    assert bind("acme", "ada", "zwölf") == b"4:acme3:ada5:zw\xc3\xb6lf"
    assert tokens.enrol_token(MASTER, INSTANCE, 2, "nonce")[-43:] == "smaQdwtemZNf1hQQwDmzsZjyjXfP9_cdMPAGNymNM1A"
    assert tokens.agent_key(MASTER, INSTANCE, KEY)[-43:] == "XqsQXUUvOIxGiEXYgGP6T74tRJbR4kiX8otml5yIzIY"
    assert tokens.control_token(MASTER, INSTANCE, KEY)[-43:] == "7FKMyOYUwsKxuaf3cAtClsKGNeU6-A1Wv43xYtEss64"


def test_the_form_of_an_idempotency_reservation_never_changes() -> None:
    assert idempotency_value("acme", "ada", "zwölf") == "4:acme3:adazwölf"


def test_different_parts_give_different_length_prefixed_bytes() -> None:
    assert length_prefixed("a", "bc") != length_prefixed("ab", "c")
    assert length_prefixed("1:a") != length_prefixed("", "a")
    assert length_prefixed() != length_prefixed("")
