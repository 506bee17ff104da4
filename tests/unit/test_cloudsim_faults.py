"""A fault applies to the operations that it names, as often as it says."""

from pathlib import Path
from typing import Any, get_args

import pytest

from hydracore.cloudsim.faults import Fault, FaultOrder, Faults, Operation
from hydracore.cloudsim.problems import ApiError
from hydracore.cloudsim.records import Effects


def faults_of(*orders: dict[str, Any]) -> Faults:
    faults = Faults()
    for order in orders:
        faults.add(FaultOrder(**order))
    return faults


def taken(faults: Faults, operation: str = "create_server", **facts: Any) -> str | None:
    order = faults.take(operation, facts).order
    return order.fault if order else None


def test_a_fault_applies_as_many_times_as_ordered() -> None:
    faults = faults_of({"operation": "create_server", "fault": "locked", "times": 2})

    assert [taken(faults) for _ in range(3)] == ["locked", "locked", None]
    assert faults.all() == []


def test_a_fault_without_a_limit_applies_until_it_is_cleared() -> None:
    faults = faults_of({"operation": "*", "fault": "locked", "times": None})
    assert [taken(faults, "get_server") for _ in range(9)] == ["locked"] * 9

    assert faults.clear() == 1

    assert taken(faults) is None


def test_a_fault_can_skip_the_first_calls_of_its_operation() -> None:
    faults = faults_of({"operation": "list_servers", "fault": "drop_reply", "skip": 2})

    assert [taken(faults, "list_servers") for _ in range(4)] == [None, None, "drop_reply", None]


def test_a_fault_with_a_location_applies_only_to_its_operation_at_that_location() -> None:
    faults = faults_of({"operation": "create_server", "fault": "no_capacity", "times": None, "location": "local1"})

    assert taken(faults, location="local2") is None
    assert taken(faults, "get_server", location="local1") is None
    assert taken(faults, location="local1") == "no_capacity"


def test_faults_of_one_operation_apply_in_the_order_in_which_they_were_added() -> None:
    faults = faults_of(*({"operation": "create_server", "fault": fault} for fault in ("locked", "drop_reply")))

    assert [taken(faults) for _ in range(3)] == ["locked", "drop_reply", None]


def test_a_create_can_lose_its_reply_and_also_make_a_faulty_server() -> None:
    faults = faults_of(
        {"operation": "create_server", "fault": "slow_boot", "delay_s": 2.5},
        {"operation": "create_server", "fault": "drop_reply"},
        {"operation": "create_server", "fault": "action_error"},
    )

    met = faults.take("create_server", {})

    assert met.order is not None
    assert met.order.fault == "drop_reply"
    assert met.effects == Effects(boot_delay_s=2.5, boot_dead=False, fail_with="action_failed")


@pytest.mark.parametrize(
    ("operation", "fault"), [("get_server", "slow_boot"), ("*", "dead_boot"), ("get_server", "action_error")]
)
def test_a_fault_without_any_effect_is_refused(operation: str, fault: str) -> None:
    with pytest.raises(ApiError):
        faults_of({"operation": operation, "fault": fault})


def test_every_operation_and_every_fault_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs/cloudsim.md").read_text()

    for name in (*get_args(Operation), *get_args(Fault)):
        assert f"`{name}`" in text
