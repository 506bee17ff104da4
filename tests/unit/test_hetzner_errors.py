"""Provider errors: the right class for each code, and never any free text of the provider."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.providers.base import (
    LATER_S_DEFAULT,
    RETRY_AFTER_S_DEFAULT,
    CreateServer,
    ProviderError,
    ProviderLater,
    ProviderNoCapacity,
    ProviderOutcomeUnknown,
    ProviderRefused,
    ProviderRetry,
)
from workers.providers.hetzner import HetznerProvider
from workers.providers.hetzner_errors import CLASS_OF_CODE, CODE_PATTERN, error_of
from workers.steps import retry_for


def error(status: int, body: bytes, *, mutation: bool = False, correlation_id: str | None = None) -> ProviderError:
    return error_of(status=status, body=body, correlation_id=correlation_id, mutation=mutation, retry_after_s=None)


def body_of(code: str, message: str = "") -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "details": {"token": message}}}).encode()


@pytest.mark.parametrize("code", sorted(CLASS_OF_CODE))
def test_the_error_code_decides_the_error_class_whatever_the_status(code: str) -> None:
    for status in (400, 422, 500, 503):
        failed = error(status, body_of(code))
        assert (type(failed), failed.code) == (CLASS_OF_CODE[code], code)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, ProviderRefused),
        (400, ProviderRefused),
        (404, ProviderRefused),
        (408, ProviderRetry),
        (409, ProviderRetry),
        (412, ProviderNoCapacity),
        (421, ProviderRetry),
        (423, ProviderLater),
        (425, ProviderRetry),
        (429, ProviderRetry),
        (500, ProviderLater),
        (502, ProviderRetry),
        (503, ProviderLater),
        (504, ProviderRetry),
    ],
)
def test_without_an_error_code_the_http_status_decides_the_error_class(status: int, kind: type[ProviderError]) -> None:
    for body in (b"", b"<html>", b"[]", b'{"error": "text"}', b"\xff"):
        failed = error(status, body)
        assert (type(failed), failed.code) == (kind, f"http_{status}")


@pytest.mark.parametrize(
    ("status", "code", "retry_after_s", "delay_s"),
    [
        (409, "conflict", None, RETRY_AFTER_S_DEFAULT),
        (409, "locked", None, RETRY_AFTER_S_DEFAULT),
        (423, "locked", None, RETRY_AFTER_S_DEFAULT),
        (423, "another_lock", None, RETRY_AFTER_S_DEFAULT),
        (500, "server_error", None, LATER_S_DEFAULT),
        (503, "maintenance", None, LATER_S_DEFAULT),
        (503, "unavailable", 50.0, 50.0),
        # No longer than that, because deadlines and alarms of an instance are still checked.
        (503, "unavailable", 3_600.0, 60.0),
    ],
)
def test_the_delay_before_a_retry_depends_on_the_error_and_on_retry_after(
    status: int, code: str, retry_after_s: float | None, delay_s: float
) -> None:
    failed = error_of(
        status=status, body=body_of(code), correlation_id=None, mutation=True, retry_after_s=retry_after_s
    )

    assert retry_for(failed).delay_s == delay_s


def test_a_timeout_answer_leaves_the_outcome_of_a_change_unknown_and_a_read_to_be_retried() -> None:
    for status, body in (
        (504, b"<html>"),
        (504, body_of("timeout")),
        (500, body_of("timeout")),
        (504, body_of("A code of a gateway's own")),
        (408, b"<html>"),
        (408, body_of("timeout")),
        (408, body_of("brand_new")),
    ):
        assert type(error(status, body, mutation=True)) is ProviderOutcomeUnknown
        assert type(error(status, body, mutation=False)) is ProviderRetry


def test_a_known_error_code_says_more_than_a_timeout_status() -> None:
    for status in (408, 504):
        assert type(error(status, body_of("conflict"), mutation=True)) is ProviderRetry
        assert type(error(status, body_of("forbidden"), mutation=True)) is ProviderRefused


@given(st.text(), st.text(min_size=1), st.text())
def test_no_free_text_of_the_provider_is_kept_in_an_error(code: str, message: str, correlation_id: str) -> None:
    failed = error(400, body_of(code, f"#{message}#"), correlation_id=correlation_id)

    printed = f"{failed} {failed!r} {vars(failed)}"
    assert f"#{message}#" not in printed
    assert CODE_PATTERN.fullmatch(failed.code)
    assert failed.correlation_id is None or set(failed.correlation_id) <= set("0123456789abcdef-")


def test_an_error_is_printed_as_its_code_and_correlation_id() -> None:
    assert str(error(400, body_of("invalid_input"), correlation_id="1e30f35cca296a67")) == (
        "invalid_input (correlation id 1e30f35cca296a67)"
    )
    assert str(ProviderRefused("invalid_input")) == "invalid_input"


def test_a_create_order_and_the_provider_client_do_not_print_their_secrets() -> None:
    order = CreateServer(name="n", server_type="t", location="l", image="i", user_data="enrol-secret", labels={})
    driver = HetznerProvider(
        "https://example.invalid/v1", "api-secret", timeout_s=1, ssh_public_key=None, ssh_key_name="k"
    )

    printed = f"{order!r} {order} {driver!r} {driver} {vars(driver)} {vars(driver._http)}"

    assert "secret" not in printed
    assert "user_data=<12 characters>" in printed
    assert msgspec.structs.asdict(order)["user_data"] == "enrol-secret"


def test_every_code_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs/providers.md").read_text()

    for code in CLASS_OF_CODE:
        assert f"`{code}`" in text
