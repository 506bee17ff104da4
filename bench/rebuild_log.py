"""Writes a log of many instances with COPY: in a few seconds, as many events as a year of appends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import LiteralString
from uuid import UUID

import psycopg

from events import types as e
from events.codec import encode, tag_of
from events.digest import GENESIS, chain_link, command_digest, event_digest
from events.ids import LANES, instance_id_for, lane_of
from events.seal import Head
from events.state import BOOTSTRAP_STAGES, TEARDOWN_STEPS
from events.types import AnyEvent, Sealed

TENANTS = 50

#: The number of instances whose lives overlap, so that neighbouring events belong to different streams,
#: as in a busy system.
OVERLAP = 2_000

NOW_MS = 1_790_000_000_000
RECORDED_AT = datetime.fromtimestamp(NOW_MS / 1000, UTC).isoformat()

#: The tenant of an instance, and its commands, each as a list of events.
Life = tuple[str, list[list[AnyEvent]]]

_COMMANDS = (
    "COPY command (lane, command_id, stream_id, tenant_id, name, actor, correlation_id, first_seq, event_count, digest,"
    " link, recorded_at) FROM STDIN"
)
_EVENTS = (
    "COPY event (lane, seq, stream_id, version, tenant_id, type, schema_version, payload, digest, command_id,"
    " recorded_at) FROM STDIN"
)
_STREAMS = "COPY stream (lane, stream_id, version) FROM STDIN"

#: Appends a copy of the log to itself, with other streams in the same lanes: their ids differ in the first byte.
_EVENTS_AGAIN = """
INSERT INTO event (lane, seq, stream_id, version, tenant_id, type, schema_version, payload, digest, command_id, recorded_at)
SELECT e.lane, e.seq + %(turn)s * h.head, encode(set_byte(uuid_send(e.stream_id), 0, get_byte(uuid_send(e.stream_id), 0) # %(turn)s),
       'hex')::uuid, e.version, e.tenant_id, e.type, e.schema_version, e.payload, e.digest, e.command_id, e.recorded_at
  FROM event e
  JOIN lane_head h ON h.lane = e.lane AND e.seq <= h.head
"""
_STREAMS_AGAIN = """
INSERT INTO stream (lane, stream_id, version)
SELECT s.lane, s.stream_id, s.version
  FROM (SELECT e.lane, e.stream_id, max(e.version) AS version FROM event e GROUP BY e.lane, e.stream_id) s
ON CONFLICT DO NOTHING
"""
_HEADS_AGAIN = """
INSERT INTO command (lane, command_id, stream_id, tenant_id, name, actor, correlation_id, first_seq, event_count, digest, link, recorded_at)
SELECT c.lane, gen_random_uuid(), c.stream_id, c.tenant_id, c.name, c.actor, c.correlation_id,
       c.first_seq + (%(times)s - 1) * h.head, c.event_count, c.digest, c.link, c.recorded_at
  FROM lane_head h
  JOIN command c ON c.lane = h.lane AND c.first_seq + c.event_count - 1 = h.head
"""

#: How COPY's text format writes a backslash, and the beginning of a bytea.
_ESCAPE, _ESCAPED, _HEX = "\\", "\\\\", "\\\\x"


def write_log(database_url: str, *, instances: int) -> int:
    """Fill an empty log with the lives of `instances`. Returns the number of events, about ten per instance."""
    blocks = (range(start, min(start + OVERLAP, instances)) for start in range(0, instances, OVERLAP))
    return write_lives(database_url, (dict(map(life_of, block)) for block in blocks))


def write_lives(database_url: str, blocks: Iterable[Mapping[UUID, Life]]) -> int:
    """Fill an empty log with blocks of overlapping lives. Returns the number of events."""
    heads = dict.fromkeys(range(LANES), Head(0, GENESIS))
    with psycopg.connect(database_url) as connection:
        for lives in blocks:
            _write_block(connection, lives, heads)
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE event, command, stream")
    return sum(head.seq for head in heads.values())


def multiply_log(database_url: str, *, times: int) -> int:
    """Make a log that was just written `times` as long, far faster than by writing it. Returns its number of events.

    The result can be folded, but not verified: copied events keep the digests and commands of the
    originals, except for one new command at the end of each lane.
    """
    with psycopg.connect(database_url) as connection:
        for turn in range(1, times):
            connection.execute(_EVENTS_AGAIN, {"turn": turn})
        connection.execute(_STREAMS_AGAIN)
        connection.execute(_HEADS_AGAIN, {"times": times})
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE event, stream")
        row = connection.execute("SELECT sum(head)::bigint FROM lane_head").fetchone()
    assert row is not None, "an aggregate gives a row"
    return row[0]


def life_of(number: int) -> tuple[UUID, Life]:
    """The instance of this number: its id, and its life."""
    return _id(number), (_tenant(number), list(_life(number)))


def _write_block(connection: psycopg.Connection, lives: Mapping[UUID, Life], heads: dict[int, Head]) -> None:
    """Write a block of overlapping lives: the first step of each, then the second step of each, and so on."""
    commands, events, streams = list[str](), list[str](), list[str]()
    for stream_id, (_, steps) in lives.items():
        streams.append(f"{lane_of(stream_id)}\t{stream_id}\t{sum(map(len, steps))}\n")
    versions = dict.fromkeys(lives, 0)
    for turn in range(max(len(steps) for _, steps in lives.values())):
        for stream_id, (tenant, steps) in lives.items():
            if turn >= len(steps):
                continue
            lane = lane_of(stream_id)
            head = heads[lane]
            command_id = UUID(int=(stream_id.int + turn + 1) % 2**128)
            digests = list[bytes]()
            for seq, event in enumerate(steps[turn], start=head.seq + 1):
                versions[stream_id] += 1
                version, tag, payload = versions[stream_id], tag_of(event), encode(event)
                digests.append(
                    event_digest(stream_id=stream_id, version=version, tag=tag, schema_version=1, payload=payload)
                )
                events.append(
                    f"{lane}\t{seq}\t{stream_id}\t{version}\t{tenant}\t{tag}\t1\t{payload.decode().replace(_ESCAPE, _ESCAPED)}"
                    f"\t{_HEX}{digests[-1].hex()}\t{command_id}\t{RECORDED_AT}\n"
                )
            digest = command_digest(
                command_id=command_id,
                stream_id=stream_id,
                tenant_id=tenant,
                name="Bench",
                actor="worker",
                correlation_id=stream_id,
                causation_id=None,
                request_hash=None,
                result=None,
                event_digests=digests,
            )
            first = head.seq + 1
            link = chain_link(previous=head.link, command=digest, first_seq=first, recorded_us=NOW_MS * 1000)
            commands.append(
                f"{lane}\t{command_id}\t{stream_id}\t{tenant}\tBench\tworker\t{stream_id}\t{first}\t{len(digests)}"
                f"\t{_HEX}{digest.hex()}\t{_HEX}{link.hex()}\t{RECORDED_AT}\n"
            )
            heads[lane] = Head(head.seq + len(digests), link)
    copies: tuple[tuple[LiteralString, list[str]], ...] = (
        (_COMMANDS, commands),
        (_EVENTS, events),
        (_STREAMS, streams),
    )
    for statement, lines in copies:
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write("".join(lines))


def _tenant(number: int) -> str:
    return f"tenant-{number % TENANTS}"


def _id(number: int) -> UUID:
    return instance_id_for(tenant_id=_tenant(number), customer_id=f"customer-{number}", idempotency_key=f"key-{number}")


def _life(number: int) -> Iterator[list[AnyEvent]]:
    """The commands of one instance, each as its events.

    Of ten instances, four wait for their server, one could get none, four run, and one was deleted.
    """
    at = NOW_MS + number
    share = number % 10
    yield [_requested(number, at)]
    yield [
        e.PlacementChosen(
            at_ms=at, attempt=1, provider="hetzner", server_type="cx22", location="fsn1", image="debian-13"
        ),
        e.AddressReserved(
            at_ms=at, hostname=f"hc-{number}", vpn_ip=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        ),
        e.ServerIntended(
            at_ms=at,
            attempt=1,
            server_name=f"hc-{_id(number)}",
            enrol_nonce=f"{number:032x}",
            enrol_token_hash=f"{number:064x}",
            enrol_expires_ms=at + 3_600_000,
            deadline_ms=at + 900_000,
        ),
    ]
    if share == 0:
        yield [e.AttemptFailed(at_ms=at, attempt=1, code="resource_unavailable", retryable=False, nothing_made=True)]
        yield [e.ServerDiscarded(at_ms=at, attempt=1)]
        yield [e.ProvisioningFailed(at_ms=at, code="resource_unavailable")]
    if share <= 4:
        return
    yield from _running(number, at)
    if share == 9:
        yield [e.DeletionRequested(at_ms=at + 9_000, reason="customer request")]
        for step in TEARDOWN_STEPS:
            yield [e.TeardownStepDone(at_ms=at + 9_500, step=step)]
        yield [e.InstanceDeleted(at_ms=at + 9_900)]


def _requested(number: int, at: int) -> AnyEvent:
    return e.InstanceRequested(
        at_ms=at,
        tenant_id=_tenant(number),
        customer_id=f"customer-{number}",
        idempotency_key=f"key-{number}",
        region_id="eu-central",
        tier_id="starter",
        preset_id="personal_assistant",
        runtime_type="expressclaw",
        workload_type="agent",
        capabilities={"chat": True, "conversations": True, "skills": True, "updates": True},
        tier_name="Starter",
        agent_name="Ada",
        customer_email=Sealed("v1." + "c2VhbGVk" * 8),
    )


def _running(number: int, at: int) -> Iterator[list[AnyEvent]]:
    boot, key = UUID(int=number), UUID(int=number + 1)
    yield [
        e.ServerCreated(at_ms=at + 500, attempt=1, server_id=str(number), ipv4="198.51.100.7", action_id=str(number))
    ]
    yield [e.AgentEnrolled(at_ms=at + 800, attempt=1, boot_id=boot, signing_key="c2lnbmluZw==", vpn_key="dnBu")]
    yield [e.AgentKeyIssued(at_ms=at + 900, attempt=1, key_id=key, key_hash=f"{number:064x}")]
    yield [e.AgentKeyAcknowledged(at_ms=at + 950, key_id=key)]
    for seq, stage in enumerate(BOOTSTRAP_STAGES, start=1):
        yield [
            e.BootstrapReported(
                at_ms=at + 1000, boot_id=boot, seq=seq, stage=stage, level="info", message="so far so good"
            )
        ]
    yield [e.InstanceReady(at_ms=at + 2000, attempt=1)]
