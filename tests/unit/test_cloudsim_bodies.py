"""Request bodies of cloudsim: whatever they are, there is an answer that says what is wrong with them."""

from __future__ import annotations

import pytest

from hydracore.cloudsim.bodies import CreateKeyBody, read_body
from hydracore.cloudsim.problems import ApiError


@pytest.mark.parametrize(
    "raw", [b"", b"{", b'{"x": ' + b"[" * 100_000, b"\xff", b'{"name": "\xff", "public_key": "k"}']
)
def test_what_is_no_json_is_told(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_body(raw, CreateKeyBody)

    assert (caught.value.status, caught.value.code) == (400, "json_error")


def test_what_does_not_fit_is_told_with_its_field() -> None:
    with pytest.raises(ApiError) as caught:
        read_body(b'{"name": 5, "public_key": "k"}', CreateKeyBody)

    assert caught.value.code == "invalid_input"
    assert "name" in str(caught.value.details)
