"""Bearer tokens: which are accepted, which are refused, and for how long."""

import base64
import json
from typing import Any

import jwt
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg_pool import AsyncConnectionPool

from hydracore import auth
from hydracore.auth import Authenticator, AuthError, Principal, issue_token

SECRET = "a-secret-of-at-least-thirty-two-characters"
NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def authenticator(clock: Clock | None = None) -> Authenticator:
    # Tokens need no database: the pool stays closed.
    return Authenticator(AsyncConnectionPool(open=False), jwt_secret=SECRET, clock=clock or Clock())


def token(**changes: Any) -> str:
    claims: dict[str, Any] = {"sub": "u1", "tenant": "t1", "role": "customer", "exp": NOW + 60, **changes}
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, SECRET, algorithm="HS256")


def test_an_issued_token_names_its_principal() -> None:
    made = issue_token(
        SECRET, tenant_id="acme", user_id="ann@example.com", role="admin", email="a@b.c", expires_at=NOW + 1
    )

    principal = authenticator().principal_of_token(made)

    assert principal == Principal(tenant_id="acme", user_id="ann@example.com", role="admin", email="a@b.c")
    assert principal.actor == "admin:ann@example.com"


def test_no_token_is_issued_for_an_invalid_id() -> None:
    with pytest.raises(msgspec.ValidationError):
        issue_token(SECRET, tenant_id="a b", user_id="u", role="customer", expires_at=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": NOW},
        {"exp": NOW - 1},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": True},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"exp": 10**400},
        {"nbf": NOW + 1},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "a b"},
        {"sub": "a\n"},
        {"sub": "x" * 129},
        {"tenant": None},
        {"tenant": "über"},
        {"tenant": ["t1"]},
        {"role": None},
        {"role": "root"},
        {"email": 5},
        {"email": "x" * 321},
        {"email": "ann\ud800@example.com"},
        {"aud": "somebody-else"},
        {"padding": "x" * auth.TOKEN_LENGTH_MAX},
    ],
    ids=str,
)
def test_tokens_with_wrong_claims_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(AuthError):
        authenticator().principal_of_token(token(**changes))


@pytest.mark.parametrize("changes", [{"jti": 7}, {"iat": "today"}, {"iat": NOW + 60}, {"iss": "somebody"}], ids=str)
def test_a_claim_that_this_api_does_not_use_may_have_any_value(changes: dict[str, Any]) -> None:
    assert authenticator().principal_of_token(token(**changes)).user_id == "u1"


@pytest.mark.parametrize("audience", ["somebody-else", ["somebody-else", "us"], 7])
def test_a_token_with_an_audience_is_refused_with_the_reason_if_its_signature_is_valid(audience: object) -> None:
    with pytest.raises(AuthError, match=r"audience \(aud\)"):
        authenticator().principal_of_token(token(aud=audience))
    with pytest.raises(AuthError, match=r"\AInvalid token\Z"):
        authenticator().principal_of_token(token(aud=audience)[:-4] + "AAAA")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"exp": None}, "exp"),
        ({"exp": -1}, "exp"),
        ({"nbf": "now"}, "nbf"),
        ({"sub": 7}, "sub"),
        ({"email": "ann\ud800@example.com"}, "email"),
        ({"sub": "a b", "tenant": None, "role": "root", "exp": True}, "sub, tenant, role, exp"),
    ],
)
def test_a_refusal_names_the_wrong_claims_only_if_the_signature_is_valid(changes: dict[str, Any], named: str) -> None:
    made = token(**changes)

    with pytest.raises(AuthError, match=rf"\AThe token's claims are missing or invalid: {named}\Z"):
        authenticator().principal_of_token(made)
    with pytest.raises(AuthError, match=r"\AInvalid token\Z"):
        authenticator().principal_of_token(made[:-4] + "AAAA")


def test_tokens_without_a_signature_by_our_secret_are_refused() -> None:
    claims = {"sub": "u1", "tenant": "t1", "role": "platform", "exp": NOW + 60}
    header, payload, signature = token().split(".")
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    wrong = [
        jwt.encode(claims, "another-secret-of-at-least-thirty-two", algorithm="HS256"),
        jwt.encode(claims, "", algorithm="none"),
        jwt.encode(claims, SECRET * 2, algorithm="HS512"),
        f"{header}.{forged}.{signature}",
        f"{header}.{payload}.",
        f"{header}.{payload}",
        "x" * 5000,
    ]

    for made in wrong:
        with pytest.raises(AuthError):
            authenticator().principal_of_token(made)


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda raw: raw.decode("latin-1")))
def test_any_text_as_a_token_is_refused_and_raises_no_other_error(text: str) -> None:
    with pytest.raises(AuthError):
        authenticator().principal_of_token(text)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists) | st.just(None))
def test_any_json_as_a_token_s_header_is_refused_and_raises_no_other_error(header: Any) -> None:
    made = base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")

    with pytest.raises(AuthError):
        authenticator().principal_of_token(f"{made}.{made}.{made}")


def test_a_deeply_nested_header_is_refused() -> None:
    nested = base64.urlsafe_b64encode(b"[" * 2900).decode()

    with pytest.raises(AuthError):
        authenticator().principal_of_token(f"{nested}.e30.e30")


def test_a_cached_token_is_refused_once_it_has_expired() -> None:
    clock = Clock()
    verifier = authenticator(clock)
    made = token(exp=NOW + 5)
    assert verifier.principal_of_token(made) is verifier.principal_of_token(made)

    clock.now = NOW + 5

    with pytest.raises(AuthError, match="expired"):
        verifier.principal_of_token(made)


def test_the_cache_of_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "TOKENS_MAX", 3)
    verifier = authenticator()
    made = [token(sub=f"u{number}") for number in range(5)]

    principals = [verifier.principal_of_token(each) for each in made]

    assert [principal.user_id for principal in principals] == ["u0", "u1", "u2", "u3", "u4"]
    assert list(verifier._tokens) == made[2:]


@pytest.mark.parametrize(
    "value",
    [b"", b"Bearer", b"Bearer ", b"Basic dTpw", b"Bearer x", b"bearer \xff\xfe", b"Bearer a b", b"x", b"Digest x"],
    ids=repr,
)
async def test_malformed_authorization_headers_are_refused(value: bytes) -> None:
    with pytest.raises(AuthError):
        await authenticator().authenticate([(b"authorization", value)])


@pytest.mark.parametrize("value", [b"x", b"hck_", b"hck_\xff", b"hck_" + b"0" * 32 + b"_short", b" "], ids=repr)
async def test_malformed_api_keys_are_refused_without_reading_the_database(value: bytes) -> None:
    with pytest.raises(AuthError):
        await authenticator().authenticate([(b"x-api-key", value)])


async def test_the_scheme_is_case_insensitive_and_a_token_takes_precedence_over_a_key() -> None:
    headers = [(b"x-api-key", b"hck_bad"), (b"authorization", b"bearer " + token().encode())]

    principal = await authenticator().authenticate(headers)

    assert principal.user_id == "u1"
