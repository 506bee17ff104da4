"""Events and their bytes: a stored event must stay readable for ever, and encode to the same bytes again.

`tests/corpus/events-v1.jsonl` holds what the first version wrote, one line per sample below. Lines are added, never edited:
an event that encodes to other bytes than before breaks every digest over the histories that contain it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType

from events import types as e
from events.codec import decode, encode, tag_of
from events.types import Sealed

CORPUS = Path(__file__).parents[1] / "corpus" / "events-v1.jsonl"

TYPES: tuple[type[e.Event], ...] = get_args(e.AnyEvent)

AT_MS = 1_790_000_000_123
BOOT, KEY, LEDGER = UUID(int=0xB1), UUID(int=0xC1), UUID(int=0xD1)

#: Each type at least once; those with optional fields with all of them and with none.
SAMPLES: tuple[e.AnyEvent, ...] = (
    e.InstanceRequested(
        at_ms=AT_MS,
        tenant_id="acme",
        customer_id="ada",
        idempotency_key="first",
        region_id="local",
        tier_id="starter",
        preset_id="personal_assistant",
        runtime_type="expressclaw",
        workload_type="website",
        capabilities={"chat": True, "browser": False},
        tier_name="Starter",
        agent_name='Ada\'s "büro" \N{SNOWMAN}\n',
        manifest_id="m-1",
        recipe_id="r-1",
        website_template_slug="plain",
        workflow_slugs=("daily", "weekly"),
        customer_email=Sealed("v1.ZW1haWw"),
        user_display_name=Sealed("v1.bmFtZQ"),
    ),
    e.InstanceRequested(
        at_ms=AT_MS,
        tenant_id="acme",
        customer_id="ada",
        idempotency_key="first",
        region_id="local",
        tier_id="starter",
        preset_id="personal_assistant",
        runtime_type="expressclaw",
        workload_type="agent",
        capabilities={},
    ),
    e.PlacementChosen(
        at_ms=AT_MS, attempt=1, provider="cloudsim", server_type="cx22", location="fsn1", image="debian-13"
    ),
    e.AddressReserved(at_ms=AT_MS, hostname="hc-ada", vpn_ip="10.64.0.16"),
    e.ServerIntended(
        at_ms=AT_MS,
        attempt=1,
        server_name="hc-server",
        enrol_nonce="nonce",
        enrol_token_hash="ab" * 32,
        enrol_expires_ms=AT_MS + 3_600_000,
        deadline_ms=AT_MS + 900_000,
    ),
    e.ServerCreated(
        at_ms=AT_MS, attempt=1, server_id="42", ipv4="127.32.0.1", ipv6="2001:db8::1", action_id="7", adopted=True
    ),
    e.ServerCreated(at_ms=AT_MS, attempt=1, server_id="42"),
    e.ServerObserved(at_ms=AT_MS, attempt=1, server_status="running"),
    e.AttemptFailed(at_ms=AT_MS, attempt=1, code="resource_unavailable", retryable=True, nothing_made=True),
    e.AttemptFailed(at_ms=AT_MS, attempt=1, code="unauthorized", retryable=False),
    e.ServerDiscarded(at_ms=AT_MS, attempt=1),
    e.ProvisioningFailed(at_ms=AT_MS, code="no_placement"),
    e.AgentEnrolled(at_ms=AT_MS, attempt=1, boot_id=BOOT, signing_key="c2lnbmluZw==", vpn_key="dnBu"),
    e.EnrolmentContested(at_ms=AT_MS, attempt=1, boot_id=BOOT),
    e.AgentKeyIssued(at_ms=AT_MS, attempt=1, key_id=KEY, key_hash="cd" * 32),
    e.AgentKeyAcknowledged(at_ms=AT_MS, key_id=KEY),
    e.AgentKeyRevoked(at_ms=AT_MS, key_id=KEY, reason="rotation"),
    e.BootstrapReported(at_ms=AT_MS, boot_id=BOOT, seq=1, stage="booted", level="info", message="up"),
    e.InstanceReady(at_ms=AT_MS, attempt=1),
    e.HealthChanged(at_ms=AT_MS, health="late"),
    e.ServerVanished(at_ms=AT_MS, attempt=1, server_id="42"),
    e.ConfigChanged(
        at_ms=AT_MS,
        agent_name="Ada's",
        system_prompt=Sealed("v1.cHJvbXB0"),
        customer_facing_prompt=Sealed("v1.ZmFjaW5n"),
        telegram_bot_token=Sealed("v1.dG9rZW4"),
        model_temperature=0.5,
        recipe_id="r-1",
        workflow_slugs=("daily",),
    ),
    e.ConfigChanged(at_ms=AT_MS, agent_name=None, telegram_bot_token=None, workflow_slugs=()),
    e.PlatformConfigPatched(
        at_ms=AT_MS,
        advanced=Sealed("v1.YWR2"),
        channels=Sealed("v1.Y2g"),
        integrations=({"id": "mail", "options": [1, 2.5, None, True]},),
        skills=("calculator", {"id": "web"}),
        recipe_id=None,
        workflow_slugs=("daily",),
    ),
    e.PlatformConfigPatched(at_ms=AT_MS, skills=()),
    e.ModelPolicyChanged(
        at_ms=AT_MS,
        primary="scripted-1",
        fallbacks=("scripted-2",),
        temperature=0.5,
        max_tokens=1_000,
        embedding_model="scripted-e",
        budget_daily_usd="1.50",
        budget_monthly_usd="20",
    ),
    e.ModelPolicyChanged(at_ms=AT_MS, primary=None, fallbacks=None, budget_daily_usd=None),
    e.ConsentChanged(at_ms=AT_MS, granted=True),
    e.UpdatesApplied(at_ms=AT_MS, config_version=3, restarted=True, forced=False),
    e.ConversationsAccessed(at_ms=AT_MS, conversation_id="c:1"),
    e.ConversationsAccessed(at_ms=AT_MS),
    e.UsageRecorded(
        at_ms=AT_MS,
        ledger_id=LEDGER,
        seq=1,
        entries=(
            e.UsageEntry(
                at_ms=AT_MS,
                model="scripted-1",
                prompt_tokens=100,
                completion_tokens=20,
                cost_usd="0.000123",
                channel="telegram",
                end_user="ef" * 16,
            ),
            e.UsageEntry(
                at_ms=AT_MS, model="scripted-1", prompt_tokens=0, completion_tokens=0, cost_usd="0", channel="api"
            ),
        ),
    ),
    e.DeletionRequested(at_ms=AT_MS, reason="requested by customer"),
    e.TeardownStepDone(at_ms=AT_MS, step="key_revoked"),
    e.TeardownBlocked(at_ms=AT_MS, step="server_deleted", code="locked"),
    e.InstanceDeleted(at_ms=AT_MS),
    e.CustomerErased(at_ms=AT_MS),
    e.UpdatesRequested(at_ms=AT_MS, config_version=3, restart=True, forced=False),
    e.UpdatesFailed(at_ms=AT_MS, config_version=3, code="agent_timeout"),
    e.UpdatesFailed(at_ms=AT_MS, config_version=3, code="agent_refused", nothing_done=True),
)


def lines() -> list[bytes]:
    return CORPUS.read_bytes().splitlines()


def test_every_event_type_has_a_line_in_the_corpus() -> None:
    assert {type(event) for event in SAMPLES} == set(TYPES)
    assert len(lines()) == len(SAMPLES)


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_a_stored_event_decodes_to_its_sample_and_encodes_to_the_same_bytes(number: int) -> None:
    line = lines()[number]

    event = decode(line)

    assert event == SAMPLES[number]
    assert encode(event) == line


def test_each_event_type_has_a_tag_of_its_own_and_writes_it_into_the_payload() -> None:
    tags = {tag_of(event): event for event in SAMPLES}

    assert len(tags) == len(TYPES)
    assert all(msgspec.json.decode(encode(event))["type"] == tag for tag, event in tags.items())


@pytest.mark.parametrize(
    "payload",
    [
        b'{"type":"instance_exploded","at_ms":1}',
        b'{"at_ms":1}',
        b'{"type":"instance_deleted"}',
        b'{"type":"instance_deleted","at_ms":"1"}',
        b'{"type":"agent_key_acknowledged","at_ms":1,"key_id":"no-uuid"}',
    ],
)
def test_a_payload_that_fits_no_event_type_is_refused(payload: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(payload)


#: What JSON carries without loss: whole numbers that every reader keeps exact, and text that UTF-8 can encode.
NUMBERS = st.integers(-(2**53), 2**53)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values that the type of a field allows."""
    if hint is Any:
        return VALUES
    if hint is UnsetType:
        return st.just(UNSET)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return structs_of(hint)
    if hint is int:
        return NUMBERS
    if hint in {str, Sealed}:
        return TEXTS
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return st.sampled_from(inner)
    if get_origin(hint) is tuple:
        return st.lists(values_of(inner[0]), max_size=3).map(tuple)
    if get_origin(hint) is dict:
        return st.dictionaries(values_of(inner[0]), values_of(inner[1]), max_size=3)
    if inner:
        return st.one_of(*map(values_of, inner))
    return st.from_type(hint)


def structs_of(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{name: values_of(hints[name]) for name in kind.__struct_fields__})


@settings(max_examples=150)
@given(st.one_of(*map(structs_of, TYPES)))
def test_any_event_survives_encoding_and_decoding_and_encodes_to_the_same_bytes(event: e.AnyEvent) -> None:
    payload = encode(event)

    assert decode(payload) == event
    assert encode(decode(payload)) == payload
