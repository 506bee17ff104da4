"""The views of one instance: they show whatever is known, and all of them show the same."""

from typing import Any
from uuid import UUID

import pytest

from projections import queries
from tests.api_server import Api
from tests.instance_fixtures import (
    execute_commands,
    free_host,
    make_failed,
    make_lost,
    module_api_fixture,
    provision,
    shared_owner_conn_fixture,
    tenant_api_fixture,
)
from tests.instance_requests import request_instance
from tests.lifecycle import health, mark_ready, report

__all__ = ["module_api_fixture", "shared_owner_conn_fixture", "tenant_api_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]

ADDRESS = "ann@example.com"


async def views(api: Api, instance_id: UUID) -> dict[str, Json]:
    paths = {
        "detail": f"/{instance_id}",
        "by key": "/by-key/k1",
        "logs": f"/{instance_id}/logs",
        "runtime": f"/{instance_id}/runtime",
        "list": "",
        "usage": f"/{instance_id}/usage",
    }
    answers = {name: await api.client.get(f"/v1/instances{path}", headers=api.token()) for name, path in paths.items()}
    assert {answer.status_code for answer in answers.values()} == {200}
    return {name: answer.json() for name, answer in answers.items()}


async def ordered(api: Api) -> UUID:
    fields = {"idempotency_key": "k1", "agent_name": "Ada", "website_template_slug": "shop"}
    return UUID(await request_instance(api, api.token(email=ADDRESS), **fields))


async def test_every_view_of_a_running_instance_shows_what_is_known(api: Api) -> None:
    instance_id, host = await ordered(api), free_host()
    await provision(api, instance_id, host=host)
    await execute_commands(api, instance_id, report(1, "booted"), mark_ready(), health("late"))

    shown = await views(api, instance_id)
    detail, by_key, runtime = shown["detail"], shown["by key"], shown["runtime"]

    everywhere = {
        "agent_name": "Ada",
        "created_at": shown["logs"]["logs"][0]["created_at"],
        "hostname": f"hc-{instance_id.hex[:8]}",
        "id": str(instance_id),
        "ip_address": "127.32.0.1",
        "preset_id": "personal_assistant",
        "provider": "cloudsim",
        "region_id": "local",
        "runtime_type": "expressclaw",
        "status": "running",
        "workload_type": "website",
        "customer_id": "ann",
        "tenant_id": api.tenant,
    }
    assert shown["list"] == {
        "instances": [everywhere | {"customer_email": ADDRESS, "product_tier_name": "Starter"}],
    }
    assert detail == everywhere | {
        "callback_seq": 1,
        "callback_stage": "booted",
        "capabilities": api.parts.catalogue.presets["personal_assistant"].capabilities,
        "error_message": None,
        "health_status": "late",
        "provisioning_stage": "ready",
        "server_type_plan": "cx22",
        "updated_at": detail["updated_at"],
        "vpn_ip": host,
    }
    progress = {"bootstrap_seq": 1, "bootstrap_stage": "booted", "provisioning_stage": "ready", "status": "running"}
    assert by_key == progress | {
        "error_message": None,
        "found": True,
        "hostname": detail["hostname"],
        "instance_id": str(instance_id),
        "logs": shown["logs"]["logs"],
    }
    assert runtime | progress | {"health_status": "late", "provision_logs": shown["logs"]["logs"]} == runtime
    assert shown["usage"]["hostname"] == detail["hostname"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_failed, "The provider does not accept HydraCore's API token; an operator has to replace it"),
        (make_lost, "The server no longer exists at the provider"),
    ],
)
async def test_a_failed_or_lost_instance_shows_its_cause_in_words(api: Api, make: Any, words: str) -> None:
    instance_id = await ordered(api)
    await make(api, instance_id)

    shown = await views(api, instance_id)

    assert [shown[name]["error_message"] for name in ("detail", "by key", "runtime")] == [words] * 3


async def test_long_logs_show_the_latest_lines_and_count_all(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    instance_id = await ordered(api)
    await provision(api, instance_id)
    await execute_commands(api, instance_id, *(report(seq, "booted", message=f"step {seq}") for seq in range(1, 6)))
    whole = (await views(api, instance_id))["logs"]
    monkeypatch.setattr(queries, "LINES_MAX", 3)

    shown = await views(api, instance_id)

    assert [line["message"] for line in shown["logs"]["logs"]] == ["step 3", "step 4", "step 5"]
    assert (whole["total"], shown["logs"]["total"]) == (len(whole["logs"]), len(whole["logs"]))
    assert shown["by key"]["logs"] == shown["runtime"]["provision_logs"] == shown["logs"]["logs"] == whole["logs"][-3:]
