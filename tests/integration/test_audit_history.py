"""`audit show`, `audit state` and `audit diff` on a real log: all of it, in order, and never a state that the instance did not have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from click.testing import Result

from events import folding
from events.types import Sealed
from hydracore.audit import difference, historical_state, history
from hydracore.audit.historical_state import state_at
from hydracore.audit.history import EventFilter, instance_entries, tenant_entries
from hydracore.audit.history_rendering import hide_sealed, render_event
from tests import lifecycle
from tests.sealed_log import Log, SealedLogs, run_audit
from tests.store_commands import create_instance, origin

Json = dict[str, Any]
SECRET = Sealed("v1." + "QUJD" * 12)


@pytest.fixture
async def log(sealed_logs: SealedLogs, tmp_path: Path) -> AsyncGenerator[Log]:
    """The three instances of a sealed log; the first has a prompt, and another tenant has an instance."""
    async with sealed_logs.copy(tmp_path) as made:
        prompt = lifecycle.configure(system_prompt=SECRET)
        await made.store.execute(made.ids[0], prompt, origin("admin:boss"))
        stranger = lifecycle.request(tenant_id="other", customer_id="eve")
        await made.store.create(lifecycle.instance_id("eve"), stranger, origin("customer:eve"))
        yield made


async def audit(log: Log, *words: str) -> Result:
    """The command in a thread: it runs a loop of its own."""
    return await asyncio.to_thread(run_audit, log, *words)


async def shown(log: Log, *words: str) -> list[Json]:
    result = await audit(log, "show", "--json", *words)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def place(event: Json) -> str:
    return f"{event['lane']}:{event['seq']}"


async def test_a_timeline_shows_each_event_with_its_actor_command_and_changes(log: Log) -> None:
    first = str(log.ids[0])

    events = await shown(log, first)
    text = (await audit(log, "show", first)).stdout

    assert [place(event) for event in events] == [f"6:{seq}" for seq in (1, 4, 5, 6, 7, 10, 13)]
    assert [event["version"] for event in events] == list(range(1, 8))
    asked, *_, named, prompted = events
    assert (asked["type"], asked["actor"], asked["command"]) == ("instance_requested", "api", "RequestInstance")
    assert {"field": "agent_name", "before": "first", "after": "second"} in named["changes"]
    assert named["fields"] == {"agent_name": "second"}
    assert (prompted["actor"], prompted["fields"]) == ("admin:boss", {"system_prompt": "(sealed)"})
    assert SECRET not in text + json.dumps(events)
    for event in events:
        assert f"{place(event)}  v{event['version']}  {event['recorded_at']}  {event['type']}" in text
        assert (
            f"by {event['actor']}: {event['command']} {event['command_id']}, correlation {event['correlation_id']}"
            in text
        )
    assert "    agent_name      first -> second\n" in text


async def test_filters_select_events_and_leave_them_unchanged(log: Log) -> None:
    first = str(log.ids[0])
    events = await shown(log, first)
    planned, named = events[1]["recorded_at"], events[4]["recorded_at"]

    async def found(*words: str) -> list[int]:
        picked = await shown(log, first, *words)
        assert [event for event in events if event in picked] == picked
        return [event["version"] for event in picked]

    assert await found("--type", "config_changed", "--type", "placement_chosen") == [2, 5, 6, 7]
    assert await found("--type", "ConfigChanged") == [5, 6, 7]
    assert await found("--actor", "admin") == await found("--actor", "admin:boss") == [7]
    assert await found("--actor", "adm") == []
    assert await found("--since", planned, "--until", named) == [2, 3, 4, 5]
    assert await found("--after", "6:5", "--limit", "2") == [4, 5]
    limited = await audit(log, "show", first, "--limit", "1")
    assert limited.stderr == "continue with: --after 6:1\n"


async def test_folding_a_long_history_yields_to_other_tasks(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    folded: list[object] = []
    seen: set[int] = set()

    def read(*args: Any, **kwargs: Any) -> Any:
        folded.append(args)
        return read_before(*args, **kwargs)

    async def look() -> None:
        while True:
            seen.add(len(folded))
            await asyncio.sleep(0)

    read_before = folding.read
    monkeypatch.setattr(folding, "read", read)
    monkeypatch.setattr(historical_state, "YIELD_EVERY", 2)
    monkeypatch.setattr(history, "YIELD_EVERY", 2)
    looking = asyncio.create_task(look())

    await state_at(log.pool, log.ids[0])
    while_folding = seen.copy()
    folded.clear()
    seen.clear()
    found = [entry async for entry in instance_entries(log.pool, log.ids[0], EventFilter(actor="nobody"))]
    looking.cancel()

    assert found == []
    assert while_folding >= {2, 4, 6}
    assert seen >= {2, 4, 6}


async def test_all_events_of_a_tenant_come_in_one_order_with_any_page_size_and_filter(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [await create_instance(log.store, customer_id="bob", key=f"another {number}") for number in range(5)]
    for instance_id in (*others, *log.ids):
        await log.store.execute(instance_id, lifecycle.configure(agent_name="last"), origin("worker"))
    whole = await shown(log, "--tenant", "acme")

    places = [(event["recorded_at"], event["lane"], event["seq"]) for event in whole]
    assert len(places) == 13 + 13
    assert places == sorted(set(places))
    assert {event["instance_id"] for event in whole} == {str(each) for each in (*others, *log.ids)}
    for instance_id in (others[0], log.ids[0]):
        assert [event for event in whole if event["instance_id"] == str(instance_id)] == await shown(
            log, str(instance_id)
        )

    # With pages of three commands and a cache of one state the result is the same.
    monkeypatch.setattr(history, "COMMANDS_PER_PAGE", 3)
    monkeypatch.setattr(history, "STATES_MAX", 1)
    monkeypatch.setattr(historical_state, "EVENTS_PER_PAGE", 2)
    assert await shown(log, "--tenant", "acme") == whole
    named = [event for event in whole if event["type"] == "config_changed"]
    assert await shown(log, "--tenant", "acme", "--type", "config_changed") == named
    by_worker = [event for event in whole if event["actor"] == "worker"]
    assert await shown(log, "--tenant", "acme", "--actor", "worker") == by_worker
    since, until = whole[5]["recorded_at"], whole[20]["recorded_at"]
    between = [event for event in whole if since <= event["recorded_at"] <= until]
    assert await shown(log, "--tenant", "acme", "--since", since, "--until", until) == between
    days = ("--since", whole[0]["recorded_at"][:10], "--until", whole[-1]["recorded_at"][:10])
    assert await shown(log, "--tenant", "acme", *days) == whole
    for number in (3, 4, 5, len(whole) - 1):
        assert await shown(log, "--tenant", "acme", "--after", place(whole[number])) == whole[number + 1 :]


async def test_pages_of_a_tenant_have_exactly_the_events_that_existed_at_the_first_page(log: Log) -> None:
    whole = await shown(log, "--tenant", "acme")
    told, words = list[Json](), list[str]()

    while len(told) < len(whole):
        page = await audit(log, "show", "--tenant", "acme", "--json", "--limit", "5", *words)
        told += map(json.loads, page.stdout.splitlines())
        words = page.stderr.removeprefix("continue with: ").split()
        await log.rename(0, f"meanwhile {len(told)}")

    assert told == whole
    assert words == []


async def test_events_appended_while_a_tenant_is_read_are_not_shown(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "COMMANDS_PER_PAGE", 1)
    seen = 0

    async for entry in tenant_entries(log.pool, "acme", EventFilter()):
        await log.rename(seen % 3, f"in between {seen}")
        assert (await render_event(entry, hide_sealed)).fields.get("agent_name", "") not in {
            "in between 0",
            "in between 1",
        }
        seen += 1

    assert seen == 13


async def test_the_state_at_any_version_or_time_is_the_fold_of_the_events_recorded_by_then(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(historical_state, "EVENTS_PER_PAGE", 2)
    first = log.ids[0]
    events = await shown(log, str(first))

    then = [await state_at(log.pool, first, version=version) for version in range(1, 8)]

    assert then[-1].state == await log.store.load(first) == (await state_at(log.pool, first)).state
    assert [each.state.version for each in then] == list(range(1, 8))
    assert [each.state.agent_name for each in then] == [None] * 4 + ["first", "second", "second"]
    for each, event in zip(then, events, strict=True):
        newest = max(other["version"] for other in events if other["recorded_at"] == event["recorded_at"])
        assert await state_at(log.pool, first, at=each.recorded_at) == then[newest - 1]
    for earlier, later in pairwise(then):
        if earlier.recorded_at < later.recorded_at:
            just_before = later.recorded_at - timedelta(microseconds=1)
            assert await state_at(log.pool, first, at=just_before) == earlier
    result = await audit(log, "state", str(first), "--version", "7", "--json")
    said = json.loads(result.stdout)
    stated = json.loads(msgspec.json.encode(then[-1].state))
    assert said["state"]["config"].pop("system_prompt") == "(sealed)"
    assert stated["config"].pop("system_prompt") == SECRET
    hidden = stated["attempt"]
    hidden["enrol_token_hash"], hidden["enrol_nonce"] = f"****{hidden['enrol_token_hash'][-4:]}", "****"
    assert said["state"] == stated
    assert "  agent_name                              second\n" in (await audit(log, "state", str(first))).stdout


async def test_a_difference_names_the_changed_fields_and_the_events_that_changed_them(log: Log) -> None:
    first = str(log.ids[0])
    await log.rename(0, "third")
    await log.rename(0, "second")

    result = await audit(log, "diff", first, "--from", "5", "--to", "7", "--json")
    found = json.loads(result.stdout)

    assert (found["from_version"], found["to_version"]) == (5, 7)
    changes = {change["field"]: change for change in found["changes"]}
    assert changes.keys() == {"agent_name", "config.version", "config.system_prompt"}
    assert (changes["agent_name"]["before"], changes["agent_name"]["after"]) == ("first", "second")
    (step,) = changes["agent_name"]["events"]
    assert (step["version"], step["type"], step["command"]) == (6, "config_changed", "ChangeConfig")
    steps = changes["config.version"]["events"]
    assert [(each["version"], each["before"], each["after"]) for each in steps] == [(6, 2, 3), (7, 3, 4)]
    # A name that was changed and changed back is no difference; a time can be given instead of a version.
    text = (await audit(log, "diff", first, "--from", found["to_recorded_at"])).stdout
    assert "agent_name" not in text
    assert "config.version  4 -> 6\n    v8" in text
    assert "no differences" in (await audit(log, "diff", first, "--from", "9")).stdout
    everything = json.loads((await audit(log, "diff", first, "--from", "0", "--json")).stdout)
    assert json.loads((await audit(log, "diff", first, "--from", "2001-01-01", "--json")).stdout) == everything
    assert {"customer_id", "hostname", "config.system_prompt"} <= {each["field"] for each in everything["changes"]}


async def test_a_difference_shows_the_last_events_that_changed_a_field_and_counts_all(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(difference, "FIELD_EVENTS_MAX", 2)
    for name in ("third", "fourth"):
        await log.rename(0, name)

    words = ("diff", str(log.ids[0]), "--from", "0")
    found = json.loads((await audit(log, *words, "--json")).stdout)
    text = (await audit(log, *words)).stdout

    (named,) = [change for change in found["changes"] if change["field"] == "agent_name"]
    assert (named["before"], named["after"], named["event_count"]) == (None, "fourth", 4)
    assert [(step["before"], step["after"]) for step in named["events"]] == [("second", "third"), ("third", "fourth")]
    assert "agent_name  null -> fourth\n    ... 2 earlier events\n    v8" in text
    (asked,) = [change for change in found["changes"] if change["field"] == "customer_id"]
    assert (asked["event_count"], len(asked["events"])) == (1, 1)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("show", "Give either INSTANCE or --tenant."),
        ("show {id} --tenant acme", "Give either INSTANCE or --tenant."),
        ("show {nobody}", "There is no instance 00000000"),
        ("show --tenant nobody", "The log has no tenant 'nobody'"),
        ("show {id} --type renamed", "'renamed' is not a type of event; the types are address_reserved,"),
        ("show {id} --since yesterday", "'yesterday' is not a time such as"),
        ("show {id} --since 2026-02-02 --until 2026-01-01", "--since must not be after --until."),
        ("show {id} --after 64:1", "'64:1' is not a position; copy one from the output"),
        ("show {id} --after 6:99", "The log has no event 6:99"),
        ("show {id} --after 6:2", "--after 6:2 is an event of another instance or tenant."),
        ("state {id} --version 8", "The instance is at version 7; it has no version 8 yet"),
        ("state {id} --version 2147483648", "Invalid value for '--version'"),
        ("state {id} --at 2020-01-01", "it did not exist before"),
        ("state {id} --at 2020-01-01 --version 1", "Give either --at or --version."),
        ("state {nobody}", "There is no instance 00000000"),
        ("state somebody", "'somebody' is not a valid UUID"),
        ("diff {id}", "Missing option '--from'"),
        ("diff {id} --from 3 --to 2", "--from must not be after --to."),
        ("diff {id} --from soon", "'soon' is neither a version, such as 5, nor a time"),
        ("diff {id} --from 8", "it has no version 8 yet"),
    ],
)
async def test_an_invalid_audit_request_is_a_usage_error_that_says_why(log: Log, words: str, complaint: str) -> None:
    result = await audit(log, *words.format(id=log.ids[0], nobody=UUID(int=0)).split())

    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("forgery", "place", "tenants_place"),
    [
        (
            'UPDATE event SET payload = \'{"type": "nonsense"}\' WHERE lane = 6 AND seq = 5',
            "Lane 6 at 5",
            "Lane 6 at 5",
        ),
        (
            "UPDATE event SET payload = replace(payload::text, 'at_ms', 'when')::json WHERE seq = 5",
            "Lane 6 at 5",
            "Lane 6 at 5",
        ),
        # In a stream the next event shows the gap; for a tenant, whose commands count their events, the missing one is named.
        ("DELETE FROM event WHERE lane = 6 AND seq = 5", "Lane 6 at 6", "Lane 6 at 5"),
        # And the other way round.
        ("DELETE FROM command WHERE lane = 6 AND first_seq = 7", "Lane 6 at 7", "Lane 6 at 10"),
    ],
)
async def test_a_tampered_history_is_an_alarm_with_its_place(
    log: Log, forgery: str, place: str, tenants_place: str
) -> None:
    with psycopg.connect(log.url, autocommit=True) as connection:
        connection.execute(forgery.encode())

    for words in ((str(log.ids[0]),), ("--tenant", "acme")):
        result = await audit(log, "show", *words)

        assert (result.exit_code, result.stderr.partition(":")[0]) == (1, "hydracore")
        assert (place if words[0] != "--tenant" else tenants_place) in result.stderr


@pytest.mark.parametrize("seq", [6, 13])
async def test_a_command_without_its_events_is_an_alarm_in_the_history_of_its_tenant(log: Log, seq: int) -> None:
    with psycopg.connect(log.url, autocommit=True) as connection:
        connection.execute(b"DELETE FROM event WHERE lane = 6 AND seq >= %s", (seq,))

    result = await audit(log, "show", "--tenant", "acme")

    assert (result.exit_code, f"Lane 6 at {seq}: the event is missing" in result.stderr) == (1, True)
