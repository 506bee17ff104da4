"""The types of settings. The `description` of a type says what a value must be, in the words of a reported problem."""

from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from hydracore.agent.messages import HEARTBEAT_INTERVAL_S_MAX, HeaderToken

KEY_BYTES: Final = 32
KEY_HINT: Final = "32 random bytes in base64url (make one: openssl rand -base64 32 | tr '+/' '-_')"

DatabaseUrl = Annotated[
    str,
    Meta(
        pattern=r"^postgres(ql)?://",
        description="a postgresql:// URL with libpq's parameters; percent-encode special characters in the password",
    ),
]
RedisUrl = Annotated[
    str,
    Meta(
        pattern=r"^(rediss?|unix)://",
        description="a redis:// URL with redis-py's parameters; percent-encode special characters in the password",
    ),
]
Key32 = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES, description=KEY_HINT)]
FormerKeys = Annotated[
    tuple[Key32, ...],
    Meta(max_length=100, description="public keys, each 32 bytes in base64url, oldest first, separated by commas"),
]
FormerMasterKeys = Annotated[
    tuple[Key32, ...],
    Meta(max_length=100, description="keys, each 32 random bytes in base64url, oldest first, separated by commas"),
]
WritableFile = Annotated[Path | None, Meta(description="the path of a writable file")]
JwtSecret = Annotated[str, Meta(min_length=32, description="at least 32 characters (make one: openssl rand -hex 32)")]
HttpUrl = Annotated[
    str,
    Meta(
        pattern=r"^https?://[^/\s]\S*\Z",
        description="an http:// or https:// URL with a host (an IPv6 address in brackets), without spaces or line breaks",
    ),
]
#: Sent in a header of each call.
ApiToken = Annotated[
    HeaderToken, Meta(description="at most 4096 printable ASCII characters, without spaces or line breaks")
]
LabelValue = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z",
        description="1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends",
    ),
]
RoleName = Annotated[
    str, Meta(pattern=r"^([a-z_][a-z0-9_]{0,62})?\Z", description="a lower-case PostgreSQL role name, or empty")
]
#: The type of the key, the key, and an optional comment.
SshPublicKey = Annotated[
    str,
    Meta(
        pattern=r"^(ssh|ecdsa|sk)-[\x21-\x7e]+ [A-Za-z0-9+/]+={0,2}( [^\x00-\x1f\x7f-\x9f]*)?\Z",
        description="an OpenSSH public key, in one line without a line break",
    ),
]
Host = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._:%-]{1,253}\Z",
        description="an address or host name to listen on, without brackets or a port",
    ),
]
Port = Annotated[int, Meta(ge=0, le=65_535, description="a port from 0 (any free one) to 65535")]
SecondPort = Annotated[Annotated[int, Meta(ge=1, le=65_535)] | None, Meta(description="a port from 1 to 65535")]
Seconds = Annotated[float, Meta(gt=0, le=604_800, description="a number of seconds above 0, at most 604800")]
#: A call may take this long each to wait for a free connection, for the rate limit and for the answer.
#: Together that has to stay below the 100 s after which a worker breaks off (`workers.advance`).
ProviderTimeout = Annotated[float, Meta(gt=0, le=30, description="a number of seconds above 0, at most 30")]
#: Agents refuse to report less often.
HeartbeatInterval = Annotated[
    float,
    Meta(
        gt=0,
        le=HEARTBEAT_INTERVAL_S_MAX,
        description=f"a number of seconds above 0, at most {HEARTBEAT_INTERVAL_S_MAX}",
    ),
]
Threads = Annotated[int, Meta(ge=1, le=512, description="a whole number from 1 to 512")]
RequestsPerMinute = Annotated[
    int, Meta(ge=0, le=10_000_000, description="a whole number from 0 (no limit) to 10000000")
]
YesOrNo = Annotated[bool, Meta(description="true or false")]
Origin = Annotated[
    str, Meta(pattern=r"^(\*|https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?)\Z")
]
Origins = Annotated[
    tuple[Origin, ...],
    Meta(max_length=100, description="origins such as https://app.example, separated by commas, or * for any"),
]
BodyBytes = Annotated[int, Meta(ge=1_024, le=16_777_216, description="a whole number of bytes from 1024 to 16777216")]
