"""Prints the events of an instance while they happen: position, type, actor, and facts that a person can read."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Self
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from rich.text import Text

from events.ids import lane_of
from events.sql import Statements
from hydracore.cli.narrator import Narrator, wait_until

_EVENTS: Final = Statements("hydracore.cli", "story.sql")["events"]

POLL_S: Final = 0.05
CAUGHT_UP_S_MAX: Final = 20.0

#: The fields that are shown, in this order. Hashes, nonces and sealed fields mean nothing to a person.
SHOWN: Final = (
    *("region_id", "tier_id", "attempt", "provider", "server_type", "location", "hostname", "vpn_ip", "server_name"),
    *("server_id", "ipv4", "status", "stage", "step", "health", "code", "reason"),
)
#: The fields of which only the presence is shown.
SEALED: Final = ("system_prompt",)
#: With these widths, a terminal of 80 columns has room for a fact or two. More go to the next line, below the type.
TYPE_WIDTH: Final = 23
ACTOR_WIDTH: Final = 17
TYPE_COLUMN: Final = 22


class Follower:
    """Reads the log in a read-only session, from the first event of `instance_id` on. `count`: events shown so far."""

    def __init__(self, database_url: str, instance_id: UUID, narrator: Narrator) -> None:
        self.count = 0
        self._polls = 0
        self._url = database_url
        self._instance_id = instance_id
        self._narrator = narrator
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Show events until the end of the block."""
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._following is not None
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)

    async def wait_until_caught_up(self) -> None:
        """Wait until all events so far are shown. Raises `StoryError` if that takes too long, and psycopg's errors."""
        # Two more polls, because the present one may have begun before the last event was appended.
        target = self._polls + 2

        async def has_polled() -> bool:
            if self._following is not None and self._following.done():
                self._following.result()
            return self._polls >= target

        await wait_until(has_polled, CAUGHT_UP_S_MAX, "the log was not read to its end")

    async def _follow(self) -> None:
        connecting = psycopg.AsyncConnection[dict[str, Any]].connect(
            self._url, autocommit=True, row_factory=dict_row, options="-c default_transaction_read_only=on"
        )
        async with await connecting as connection:
            while True:
                await self._show_new(connection)
                self._polls += 1
                await asyncio.sleep(POLL_S)

    async def _show_new(self, connection: psycopg.AsyncConnection[dict[str, Any]]) -> None:
        """Show what has been appended since the last poll."""
        lane = lane_of(self._instance_id)
        cursor = await connection.execute(
            _EVENTS, {"lane": lane, "stream_id": self._instance_id, "version": self.count}
        )
        async with self._narrator.line_open:
            async for event in cursor:
                assert event["version"] == self.count + 1, "a stream's versions have no gaps"
                self.count += 1
                self._narrator.line(head_of(event), facts_of(event["payload"]), indent=TYPE_COLUMN)


def facts_of(payload: Mapping[str, Any]) -> str:
    """The fields of an event's payload that a person can read."""
    facts = [f"{name}={payload[name]}" for name in SHOWN if payload.get(name) is not None]
    facts += [f"{name}=(sealed)" for name in SEALED if payload.get(name) is not None]
    if "entries" in payload:
        facts.append(f"model_calls={len(payload['entries'])}")
    return " ".join(facts)


def head_of(event: Mapping[str, Any]) -> Text:
    """When an event was appended, its position, its type and its actor, in columns."""
    return Text.assemble(
        (f"  {event['recorded_at']:%H:%M:%S.%f}"[:-3], "dim"),
        (f" {event['lane']:>2}/{event['seq']:<3}", "cyan"),
        (f" {event['type']:<{TYPE_WIDTH}}", "bold"),
        (f" {_shortened(event['actor']):<{ACTOR_WIDTH}} ", "green"),
    )


def _shortened(actor: str) -> str:
    """`customer:9f6c1c3e-...` as `customer:9f6c1c3e`: enough to tell two apart."""
    kind, colon, name = actor.partition(":")
    try:
        return f"{kind}{colon}{UUID(name).hex[:8]}"
    except ValueError:
        return actor
