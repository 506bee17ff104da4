"""The bodies of agents' requests. Everything has a bound: the program is ours, but not the machine that it runs on."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Final
from uuid import UUID

import msgspec
from msgspec import Meta

from hydracore.agent.messages import Count, Level, Stage
from hydracore.tokens import ATTEMPT_MAX

#: The largest value of an integer column.
SEQ_MAX: Final = 2**31 - 1
#: The most further reports in a callback: twice what our agents send.
FOLLOWING_MAX: Final = 20
#: The most model calls in a batch of usage.
ENTRIES_MAX: Final = 100
#: The largest bodies, whatever the setting for bodies says: an agent repeats the same body until it is accepted. JSON
#: may write each character in six bytes: ten messages of 500 characters, and a hundred calls with names of 616
#: characters.
CALLBACK_BODY_BYTES: Final = 10 * 4 * 1024
USAGE_BODY_BYTES: Final = ENTRIES_MAX * 4 * 1024
Attempt = Annotated[int, Meta(ge=1, le=ATTEMPT_MAX)]
Seq = Annotated[int, Meta(ge=1, le=SEQ_MAX)]
#: Standard base64 of 32 raw bytes.
RawKey = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=\Z")]
Message = Annotated[str, Meta(max_length=2_000)]
Version = Annotated[str, Meta(max_length=64)]


class PublicKeys(msgspec.Struct, frozen=True):
    """`signing` is Ed25519, `vpn` is X25519."""

    signing: RawKey
    vpn: RawKey


class Enroll(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: UUID
    attempt: Attempt
    token: Annotated[str, Meta(max_length=256)]
    boot_id: UUID
    public_keys: PublicKeys


class AskSecrets(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: UUID
    attempt: Attempt
    boot_id: UUID


class AcknowledgeSecrets(msgspec.Struct, frozen=True, kw_only=True):
    boot_id: UUID
    key_id: UUID


class CallbackEntry(msgspec.Struct, frozen=True, kw_only=True):
    stage: Stage
    level: Level
    message: Message


class Callback(msgspec.Struct, frozen=True, kw_only=True):
    """The report with the number `seq`, and further ones in `following` with the numbers after it.

    `key_id` acknowledges the key's secrets, as `secrets/ack` does.
    """

    boot_id: UUID
    seq: Seq
    stage: Stage
    level: Level
    message: Message
    following: Annotated[list[CallbackEntry], Meta(max_length=FOLLOWING_MAX)] = []
    key_id: UUID | None = None


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    agent: Version
    openclaw: Version | None = None
    node: Version | None = None


class ReportedError(msgspec.Struct, frozen=True, kw_only=True):
    code: Annotated[str, Meta(max_length=64)]
    message: Message


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    boot_id: UUID
    uptime_seconds: Count
    active_connections: Count
    versions: Versions
    skills_loaded: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=256)]
    config_version: Count | None
    error: ReportedError | None


class AskConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`config_version`: the configuration that the agent runs; None while it runs none."""

    boot_id: UUID
    config_version: Count | None = None


class UsageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One model call. `cost_usd`: US dollars. `channel`: how the message reached the agent.

    Figures have no bounds here: they come from clocks and models' endpoints, and an agent that is refused would repeat
    the same batch for ever. Figures out of range are clamped when they are recorded.
    """

    at_ms: int
    model: Annotated[str, Meta(max_length=200)]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Decimal
    end_user: Annotated[str, Meta(max_length=256)] | None = None
    channel: Annotated[str, Meta(pattern=r"^[a-z_]{1,32}\Z")]
    conversation_id: Annotated[str, Meta(max_length=128)] | None = None


class UsageBatch(msgspec.Struct, frozen=True, kw_only=True):
    boot_id: UUID
    ledger_id: UUID
    seq: Seq
    entries: Annotated[list[UsageEntry], Meta(min_length=1, max_length=ENTRIES_MAX)]
