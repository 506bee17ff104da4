"""Invalid request bodies to cloudsim: each is refused with an error that says what is wrong."""

from __future__ import annotations

import pytest

from hydracore.cloudsim.bodies import CreateKeyBody, read_body
from hydracore.cloudsim.problems import ApiError


@pytest.mark.parametrize(
    "raw", [b"", b"{", b'{"x": ' + b"[" * 100_000, b"\xff", b'{"name": "\xff", "public_key": "k"}']
)
def test_a_body_that_is_not_json_is_refused_with_json_error(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_body(raw, CreateKeyBody)

    assert (caught.value.status, caught.value.code) == (400, "json_error")


def test_a_body_that_does_not_fit_the_schema_is_refused_with_the_name_of_the_field() -> None:
    with pytest.raises(ApiError) as caught:
        read_body(b'{"name": 5, "public_key": "k"}', CreateKeyBody)

    assert caught.value.code == "invalid_input"
    assert "name" in str(caught.value.details)
