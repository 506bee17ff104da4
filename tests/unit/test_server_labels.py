"""How a server's labels show which intent it was made for."""

from datetime import UTC, datetime

import msgspec
import pytest

from events.state import Instance
from tests import lifecycle
from tests.lifecycle import InMemoryInstance
from workers.labels import is_accounted_for, is_made_for
from workers.providers.base import Server


@pytest.fixture(scope="module")
def second_attempt() -> Instance:
    """An instance whose first server failed, and whose second one is intended."""
    return (
        InMemoryInstance()
        .after(lifecycle.request(), lifecycle.plan(), lifecycle.failed(), lifecycle.discarded(), lifecycle.plan(2))
        .state
    )


def server(**labels: str) -> Server:
    return Server(
        id="1",
        name="hc-server",
        status="running",
        ipv4=None,
        ipv6=None,
        labels={f"hc-{name}": value for name, value in labels.items()},
        location="local1",
        server_type="sim1",
        created_at=datetime(2026, 11, 1, tzinfo=UTC),
    )


def intent(attempt: int) -> str:
    return lifecycle.token_hash(attempt)[:16]


@pytest.mark.parametrize(
    ("labels", "made_for", "accounted_for"),
    [
        ({"attempt": "2", "intent": intent(2)}, True, True),
        ({"attempt": "1", "intent": intent(1)}, False, True),
        ({"attempt": "2", "intent": intent(7)}, False, False),
        ({"attempt": "1", "intent": intent(7)}, False, False),
        ({"attempt": "2"}, True, True),
        ({"attempt": "1"}, False, True),
        ({"attempt": "3"}, False, False),
        ({}, False, True),
    ],
    ids=[
        *("this attempt", "an earlier one", "this one of another history", "an earlier one of another history"),
        *("this attempt, unlabelled", "an earlier one, unlabelled", "a later one, unlabelled", "no label at all"),
    ],
)
def test_a_server_is_matched_by_its_intent_label_or_without_one_by_its_attempt_number(
    second_attempt: Instance, labels: dict[str, str], *, made_for: bool, accounted_for: bool
) -> None:
    assert second_attempt.attempt is not None

    assert is_made_for(second_attempt.attempt, server(**labels)) is made_for
    assert is_accounted_for(second_attempt, server(**labels)) is accounted_for


def test_a_server_whose_id_is_in_the_log_is_accounted_for_whatever_its_labels_say() -> None:
    state = InMemoryInstance().after(lifecycle.request(), lifecycle.plan(), lifecycle.created(server_id="1")).state

    assert is_accounted_for(state, server(attempt="3", intent=intent(7)))


def test_of_servers_created_in_the_same_second_the_one_with_the_smaller_id_is_the_older() -> None:
    servers = [msgspec.structs.replace(server(), id=number) for number in ("10", "9", "11")]

    assert [each.id for each in sorted(servers, key=lambda each: each.age_order)] == ["9", "10", "11"]
