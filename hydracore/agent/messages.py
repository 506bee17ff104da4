"""The messages between an agent and its control plane, in both directions. Data only.

Structs that carry a secret hide it from `repr`, so that neither a log line nor a traceback can show it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args
from uuid import UUID

import msgspec

#: How far a boot has come. A stage only moves forward within a boot.
Stage = Literal["booted", "enrolled", "secrets", "configured", "runtime_started", "healthy"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Level = Literal["info", "warning", "error"]

#: The way by which a chat came.
Channel = Literal["api", "telegram"]

#: A token that goes into an HTTP header: printable ASCII without blanks, so that it can neither break nor split one.
HeaderToken = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]+\Z", max_length=4096)]

#: The largest value of a counter. Up to it, every JSON reader keeps whole numbers exact.
COUNT_MAX: Final = 2**53
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]

#: The most tokens of one call; no model reads or writes more.
TOKENS_MAX: Final = 1_000_000_000

#: The longest interval of heartbeats that an agent accepts.
HEARTBEAT_INTERVAL_S_MAX: Final = 3_600
HeartbeatInterval = Annotated[float, msgspec.Meta(gt=0, le=HEARTBEAT_INTERVAL_S_MAX)]


class PublicKeys(msgspec.Struct, frozen=True):
    """Standard base64 of the raw 32 bytes: `signing` is Ed25519, `vpn` is X25519."""

    signing: str
    vpn: str


class EnrollRequest(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: UUID
    attempt: int
    token: str
    boot_id: UUID
    public_keys: PublicKeys

    def __repr__(self) -> str:
        return f"EnrollRequest(instance_id={self.instance_id}, attempt={self.attempt}, boot_id={self.boot_id})"


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: UUID
    attempt: int
    boot_id: UUID


class SecretsRequest(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: UUID
    attempt: int
    boot_id: UUID


class Listen(msgspec.Struct, frozen=True):
    """Where the agent's own server listens: an address of the VPS, on its VPN side."""

    host: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent needs to work: its key, the token that its own API requires, and its configuration.

    `runtime` names the runtime under `type`; the rest is for that runtime to read.
    """

    key_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    agent_key: HeaderToken
    control_token: HeaderToken
    listen: Listen
    heartbeat_interval_s: HeartbeatInterval
    config_version: Annotated[int, msgspec.Meta(ge=0)]
    runtime: dict[str, Any]

    def __repr__(self) -> str:
        return f"Secrets(key_id={self.key_id!r}, listen={self.listen!r}, config_version={self.config_version})"


class SecretsAck(msgspec.Struct, frozen=True, kw_only=True):
    boot_id: UUID
    key_id: str


class CallbackEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One report of the agent."""

    stage: Stage
    level: Level
    message: str


class Callback(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A report of the agent, with the reports right after it that wait to be sent, too (`following`).

    `seq` numbers reports within `boot_id`, from 1 without a gap; those of `following` have the next
    numbers. `key_id` acknowledges the secrets of this key, as a `SecretsAck` does.
    """

    boot_id: UUID
    seq: int
    stage: Stage
    level: Level
    message: str
    following: tuple[CallbackEntry, ...] = ()
    key_id: str | None = None

    @property
    def last_seq(self) -> int:
        return self.seq + len(self.following)


class CallbackAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """`seq`: the last number that the control plane has now. `duplicate`: whether it had all of them before."""

    seq: int
    duplicate: bool


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an error answer, as far as an agent reads it."""

    expected_seq: Count | None = None


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    agent: str
    openclaw: str | None = None
    node: str | None = None


class ReportedError(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    boot_id: UUID
    uptime_seconds: int
    active_connections: int
    versions: Versions
    skills_loaded: tuple[str, ...]
    config_version: int | None
    error: ReportedError | None


class HeartbeatReply(msgspec.Struct, frozen=True, kw_only=True):
    """`config_version`: the version that the agent ought to run. `heartbeat_interval_s`: the interval
    from now on; None if the control plane does not say, and then that of the secrets."""

    config_version: int
    heartbeat_interval_s: HeartbeatInterval | None = None


class ConfigRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`config_version`: what the agent runs, null while it runs nothing."""

    boot_id: UUID
    config_version: int | None


class NewestConfig(msgspec.Struct, frozen=True, kw_only=True):
    config_version: Annotated[int, msgspec.Meta(ge=0)]
    runtime: dict[str, Any]

    def __repr__(self) -> str:
        return f"NewestConfig(config_version={self.config_version})"


class UsageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a model. `at_ms`: milliseconds since 1970; `cost_usd`: a decimal number of US dollars."""

    at_ms: int
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: str
    end_user: str | None
    channel: Channel
    conversation_id: str


class UsageBatch(msgspec.Struct, frozen=True, kw_only=True):
    """`seq` is dense from 1 within `ledger_id`, and the entries of a number never change."""

    boot_id: UUID
    ledger_id: UUID
    seq: int
    entries: tuple[UsageEntry, ...]


class UsageAccepted(msgspec.Struct, frozen=True, kw_only=True):
    seq: int
    duplicate: bool


class Ignored(msgspec.Struct, frozen=True):
    """A part of the configuration that the runtime does not use: where it is, and why (for people, without secrets)."""

    path: str
    reason: str


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's answer to `GET /api/status`. `config_version` is null while no runtime runs.

    `connections`: the states of channels, integrations and memory, by name: `off`, `ready`, `connected`,
    `unsupported` or `error: ...`. `ignored`: the parts of the configuration that are not used.
    """

    instance_id: UUID
    attempt: int
    boot_id: UUID
    stage: Stage
    healthy: bool
    runtime: str
    uptime_seconds: Count
    active_connections: Count
    versions: Versions
    skills_loaded: tuple[str, ...]
    config_version: Count | None
    error: ReportedError | None
    connections: dict[str, str] = {}
    workflows_loaded: tuple[str, ...] = ()
    ignored: tuple[Ignored, ...] = ()


class Drain(msgspec.Struct, frozen=True):
    """Body of `POST /api/drain`, which may be empty. `cut`: end the open chats, and send their usage
    to the control plane before answering."""

    cut: bool = False


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's answer to `POST /api/drain`. `active_connections`: chats that are still open.
    `usage_unsent`: whether the control plane may lack usage of chats that are over."""

    active_connections: Count
    usage_unsent: bool = False
