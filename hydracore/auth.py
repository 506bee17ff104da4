"""Authentication: bearer tokens (JWT, HS256) and tenants' API keys.

A token's claims are `sub` (the user), `tenant`, `role`, `exp` and optionally `email`. An API key acts as its tenant's
admin, or as the customer named in `X-User-Id`. If a request has both headers, only `Authorization` counts, even without
a token in it: a backend that passes on its user's token must not lend that user its own rights. A header that is
repeated is refused, because a proxy might use the other one.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal, NamedTuple
from uuid import UUID, uuid4

import jwt
import msgspec
from msgspec import Meta
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from events.retries import with_retries
from events.sql import Statements
from hydracore.tokens import hash_token

Role = Literal["customer", "admin", "platform"]

#: Ids of tenants and customers. They are used unescaped in log lines, headers and labels.
#: (`\Z` and not `$`, which would allow a line feed at the end.)
ID_PATTERN: Final = r"^[A-Za-z0-9._:@-]{1,128}\Z"
EMAIL_LENGTH_MAX: Final = 320

#: The most characters of a token. Longer ones are refused without decoding; ours have about 300.
TOKEN_LENGTH_MAX: Final = 4096

#: The largest time. Beyond it, a float cannot represent every second. Also excludes NaN and infinity.
TIME_MAX: Final = 2**53

#: Blanks around a header's value, which are not part of it (RFC 9110, section 5.5). The server's parser keeps those
#: at the end.
HEADER_BLANKS: Final = b" \t"

#: The most verified tokens that are cached. Only valid ones are, so that a stranger cannot displace others.
TOKENS_MAX: Final = 10_000

#: How long an API key is cached, in seconds. A revoked key may work for that long.
API_KEY_CACHE_S: Final = 0.5
API_KEYS_MAX: Final = 10_000

_SQL = Statements("hydracore", "auth.sql")
_FIND = _SQL["find_api_key"]
_INSERT = _SQL["insert_api_key"]
_REVOKE = _SQL["revoke_api_key"]
_LIST = _SQL["list_api_keys"]

#: The headers that authenticate a request.
_CREDENTIAL_HEADERS: Final = frozenset({b"authorization", b"x-api-key", b"x-user-id"})

_ALGORITHM: Final = "HS256"
_ID: Final = re.compile(ID_PATTERN, re.ASCII)
_API_KEY: Final = re.compile(r"hck_([0-9a-f]{32})_[A-Za-z0-9_-]{43}", re.ASCII)

Id = Annotated[str, Meta(pattern=ID_PATTERN)]


class AuthError(Exception):
    """The caller is not authenticated. `str()` may be shown to the caller."""


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated caller. `key_id`: the API key of the request, if any."""

    tenant_id: str
    user_id: str
    role: Role
    email: str | None = None
    key_id: UUID | None = None

    @property
    def actor(self) -> str:
        """The caller's name in the log."""
        if self.key_id is None:
            return f"{self.role}:{self.user_id}"
        suffix = f" as customer:{self.user_id}" if self.role == "customer" else ""
        return f"api_key:{self.key_id}{suffix}"


class ApiKey(NamedTuple):
    """A tenant's API key, without its secret, which is not stored. `name`: what it is for."""

    id: UUID
    tenant_id: str
    name: str
    created_at: datetime
    revoked_at: datetime | None


class _Claims(msgspec.Struct, frozen=True):
    sub: Id
    tenant: Id
    role: Role
    exp: int | float
    nbf: int | float = 0
    email: Annotated[str, Meta(max_length=EMAIL_LENGTH_MAX)] | None = None


def _wrong_claims(payload: Mapping[str, Any]) -> list[str]:
    """The names of the claims that are missing or invalid."""
    return [
        each.name
        for each in msgspec.structs.fields(_Claims)
        if (_is_wrong(payload[each.name], each.type) if each.name in payload else each.required)
    ]


def _is_wrong(value: Any, declared: Any) -> bool:
    try:
        claim = msgspec.convert(value, declared)
        # JSON can escape a lone surrogate, which cannot be stored.
        str(claim).encode()
    except ValueError:
        return True
    return isinstance(claim, int | float) and not 0 <= claim <= TIME_MAX


class _CachedKey(NamedTuple):
    """`stale_at`: in monotonic seconds. If the wall clock was used and set back, a revoked key would live on."""

    tenant_id: str
    key_hash: bytes
    stale_at: float


class Authenticator:
    """Turns a request's headers into a `Principal`. One per process. `clock`: seconds since 1970, for expiry."""

    def __init__(self, pool: AsyncConnectionPool, *, jwt_secret: str, clock: Callable[[], float] = time.time) -> None:
        self._pool = pool
        self._secret = jwt_secret
        self._clock = clock
        self._tokens: dict[str, tuple[Principal, float]] = {}
        self._keys: dict[UUID, _CachedKey] = {}
        self._lookups: dict[UUID, asyncio.Task[_CachedKey | None]] = {}

    async def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        """The principal of ASGI `headers`. Raises `AuthError`, and `StoreUnavailable` if a key cannot be looked up."""
        given: dict[bytes, str] = {}
        for name, value in headers:
            if name in _CREDENTIAL_HEADERS:
                if name in given:
                    raise AuthError(f"{name.decode()} is given twice")
                given[name] = _text(value)
        authorization = given.get(b"authorization")
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() != "bearer":
                raise AuthError("Use a bearer token or an API key")
            return self.principal_of_token(token.strip())
        api_key = given.get(b"x-api-key")
        if api_key:
            return await self.principal_of_key(api_key, acting_as=given.get(b"x-user-id"))
        raise AuthError("Not authenticated")

    def principal_of_token(self, token: str) -> Principal:
        """The principal that a signed token names. Raises `AuthError`."""
        cached = self._tokens.get(token)
        if cached is not None:
            if self._clock() < cached[1]:
                return cached[0]
            del self._tokens[token]
        claims = self._verified(token)
        principal = Principal(tenant_id=claims.tenant, user_id=claims.sub, role=claims.role, email=claims.email)
        if len(self._tokens) >= TOKENS_MAX:
            # The oldest goes: dicts keep the order of insertion.
            del self._tokens[next(iter(self._tokens))]
        self._tokens[token] = (principal, float(claims.exp))
        return principal

    async def principal_of_key(self, api_key: str, *, acting_as: str | None = None) -> Principal:
        """The principal of an API key; `acting_as`: the customer it speaks for. Raises `AuthError`.

        An empty `acting_as` is an invalid id and does not mean None: a backend that has lost track of its user must not
        act as the tenant's admin.
        """
        found = _API_KEY.fullmatch(api_key)
        if found is None:
            raise AuthError("Invalid API key")
        key_id = UUID(found[1])
        cached = await self._find_key(key_id)
        # The comparison is made even for an unknown id, so that the time taken does not tell which ids exist.
        expected = cached.key_hash if cached is not None else bytes(32)
        if not hmac.compare_digest(hash_token(api_key), expected) or cached is None:
            raise AuthError("Invalid API key")
        if acting_as is None:
            return Principal(tenant_id=cached.tenant_id, user_id=f"api_key:{key_id}", role="admin", key_id=key_id)
        if not _ID.fullmatch(acting_as):
            raise AuthError("Invalid X-User-Id")
        return Principal(tenant_id=cached.tenant_id, user_id=acting_as, role="customer", key_id=key_id)

    def _verified(self, token: str) -> _Claims:
        if len(token) > TOKEN_LENGTH_MAX:
            raise AuthError("Invalid token")
        # Claims are checked below, if they are used, and times against our clock.
        options = dict.fromkeys(("verify_exp", "verify_nbf", "verify_iat", "verify_sub", "verify_jti"), False)
        try:
            payload = jwt.decode(token, self._secret, algorithms=[_ALGORITHM], options=options)  # pyright: ignore[reportArgumentType] - a TypedDict there
        except jwt.InvalidAudienceError:
            # The signature is valid, so the caller may learn the reason.
            raise AuthError("The token names an audience (aud), which this API does not accept") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            # PyJWT decodes the unverified header first. Deeply nested JSON in it raises RecursionError.
            raise AuthError("Invalid token") from None
        if wrong := _wrong_claims(payload):
            raise AuthError(f"The token's claims are missing or invalid: {', '.join(wrong)}")
        claims = msgspec.convert(payload, _Claims)
        if claims.exp <= self._clock():
            raise AuthError("Token expired")
        if claims.nbf > self._clock():
            raise AuthError("Token not valid yet")
        return claims

    async def _find_key(self, key_id: UUID) -> _CachedKey | None:
        cached = self._keys.get(key_id)
        if cached is not None and time.monotonic() < cached.stale_at:
            return cached
        lookup = self._lookups.get(key_id)
        if lookup is None:
            # Concurrent requests share one lookup. A caller who goes away must not cancel it for the others (`shield`).
            lookup = asyncio.create_task(self._look_up(key_id))
            self._lookups[key_id] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(key_id))
        return await asyncio.shield(lookup)

    async def _look_up(self, key_id: UUID) -> _CachedKey | None:
        stale_at = time.monotonic() + API_KEY_CACHE_S

        async def find(connection: AsyncConnection) -> tuple[str, bytes] | None:
            cursor = await connection.execute(_FIND, (key_id,), prepare=True)
            return await cursor.fetchone()

        row = await with_retries(self._pool, find)
        self._keys.pop(key_id, None)
        if row is None:
            return None
        if len(self._keys) >= API_KEYS_MAX:
            del self._keys[next(iter(self._keys))]
        cached = _CachedKey(row[0], bytes(row[1]), stale_at)
        self._keys[key_id] = cached
        return cached


def _text(value: bytes) -> str:
    return value.strip(HEADER_BLANKS).decode("latin-1")


def issue_token(
    jwt_secret: str, *, tenant_id: str, user_id: str, role: Role, expires_at: float, email: str | None = None
) -> str:
    """A signed token. `expires_at`: seconds since 1970. Raises `msgspec.ValidationError` for invalid ids."""
    claims = {"sub": user_id, "tenant": tenant_id, "role": role, "exp": math.ceil(expires_at)}
    if email is not None:
        claims["email"] = email
    msgspec.convert(claims, _Claims)
    return jwt.encode(claims, jwt_secret, algorithm=_ALGORITHM)


async def create_api_key(connection: AsyncConnection, *, tenant_id: str, name: str) -> str:
    """Create a key for a tenant's backend and return it. It cannot be read again."""
    assert _ID.fullmatch(tenant_id), tenant_id
    key_id = uuid4()
    api_key = f"hck_{key_id.hex}_{secrets.token_urlsafe(32)}"
    await connection.execute(_INSERT, (key_id, tenant_id, name, hash_token(api_key)))
    return api_key


async def list_api_keys(connection: AsyncConnection, tenant_id: str) -> list[ApiKey]:
    """A tenant's keys, the oldest first, revoked ones too."""
    cursor = connection.cursor(row_factory=class_row(ApiKey))
    return await (await cursor.execute(_LIST, (tenant_id,))).fetchall()


async def revoke_api_key(connection: AsyncConnection, key_id: UUID) -> ApiKey | None:
    """Revoke a key, everywhere within `API_KEY_CACHE_S`. A revoked key keeps its time. None if there is no such key."""
    cursor = connection.cursor(row_factory=class_row(ApiKey))
    return await (await cursor.execute(_REVOKE, (key_id,))).fetchone()
