"""A client that a public generator makes from the served document, used unchanged."""

import importlib
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from hydracore.api.openapi import document
from tests.api_server import Api, every_operation
from tests.instance_fixtures import RunningInstance, shared_api_fixture, shared_instance_fixture  # noqa: F401 - fixtures

PACKAGE = "hydracore_client"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """The folder of the client; what it is made of is what a server without anything behind it would serve."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_bytes(httpx.Response(200, json=document(every_operation())).content)
    # Nothing is formatted or fixed up afterwards.
    (folder / "config.yaml").write_text("post_hooks: []\n")
    options = {"path": "openapi.json", "meta": "none", "output-path": PACKAGE, "config": "config.yaml"}
    run = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", *(f"--{key}={options[key]}" for key in options)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, "WARNING" in run.stdout + run.stderr) == (0, False), run.stdout + run.stderr
    sys.path.insert(0, str(folder))
    yield folder / PACKAGE
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


@pytest.fixture
def models(generated: Path) -> ModuleType:
    return importlib.import_module(f"{PACKAGE}.models")


class Caller:
    """The generated functions, each called as its module offers it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        module = importlib.import_module(f"{PACKAGE}.api.default.{operation}")

        async def call(*arguments: Any, **given: Any) -> Any:
            answer = await module.asyncio_detailed(*arguments, client=self._client, **given)
            assert answer.parsed is not None, "an answer that the client could not read"
            return answer.parsed

        return call


@asynccontextmanager
async def calling(api: Api, token: str = "", **who: Any) -> AsyncGenerator[Caller]:
    token = token or api.token(**who)["Authorization"].removeprefix("Bearer ")
    made = importlib.import_module(PACKAGE)
    async with made.AuthenticatedClient(base_url=api.url, token=token, raise_on_unexpected_status=True) as client:
        yield Caller(client)


def test_the_generated_client_has_every_operation_of_the_document(generated: Path) -> None:
    found = {path.stem for path in (generated / "api" / "default").glob("*.py")} - {"__init__"}

    assert found == {op.handler.__name__ for op in every_operation()}


@pytest.mark.asyncio(loop_scope="module")
async def test_the_generated_client_creates_reads_and_deletes_an_instance(
    api: Api, models: ModuleType, generated: Path
) -> None:
    order = models.CreateInstance(region_id="local", tier_id="starter", agent_name="Ada", idempotency_key="first")

    async with calling(api) as ann:
        made = await ann.create_instance(body=order)
        again = await ann.create_instance(body=order)
        listed = await ann.list_instances(limit=10, status=models.ListInstancesStatusType0("pending"))
        detail = await ann.get_instance(made.instance_id)
        polled = await ann.poll_by_key("first")
        logs = await ann.get_logs(made.instance_id)
        runtime = await ann.get_runtime(made.instance_id)
        deleted = await ann.delete_instance(made.instance_id)

    assert isinstance(made, models.CreateInstanceResponse)
    assert isinstance(made.instance_id, UUID)
    assert again.instance_id == made.instance_id
    assert [each.id for each in listed.instances] == [made.instance_id]
    assert (detail.agent_name, detail.status, detail.ip_address) == ("Ada", "pending", None)
    assert detail.created_at.tzinfo is not None
    assert (polled.found, polled.instance_id) == (True, made.instance_id)
    assert logs.total == len(logs.logs) > 0
    assert (runtime.status, runtime.last_heartbeat) == ("pending", None)
    assert (deleted.already_deleted, deleted.status) == (False, "deleting")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_generated_client_uses_and_configures_an_instance(
    instance: RunningInstance, models: ModuleType, generated: Path
) -> None:
    here = instance.instance_id
    patch = models.PatchPlatformConfig.from_dict({"advanced": {"depth": 1}, "skills": ["notes"], "channels": None})

    async with calling(instance.api) as ann, calling(instance.api, user="boss", role="admin") as boss:
        chat = await ann.chat(here, body=models.ChatRequest(message="Hello"), idempotency_key="once")
        await ann.update_config(here, body=models.UpdateConfig(agent_name="Ada", model_temperature=0.5))
        config = await ann.get_config(here)
        await ann.patch_platform_config(here, body=patch)
        platform = await ann.get_platform_config(here)
        policy = await ann.update_model_policy(here, body=models.UpdateModelPolicy(budget_daily_usd=1.5))
        consent = await ann.set_consent(here, body=models.UpdateConsent(consent_debug_access=True))
        conversations = await ann.list_conversations(here, limit=5)
        conversation = await ann.get_conversation(here, "c-1")
        usage = await ann.get_usage(here, days=7)
        updates = await ann.apply_updates(here, body=models.ApplyUpdates(force=True))
        rotated = await boss.rotate_key(here)
        cleaned = await boss.clean_up()

    assert chat["message"] == "Hello there"
    assert (config.agent_name, config.model_temperature) == ("Ada", 0.5)
    assert platform.advanced.to_dict() == {"depth": 1}
    assert policy.model_policy["budget_daily_usd"] is not None
    assert consent.consent_debug_access is True
    assert conversations["conversations"][0]["id"] == conversation["id"] == "c-1"
    assert len(usage.daily) == 7
    assert (updates.status, rotated.status, cleaned.cleaned) == ("applied", "rotated", 0)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_generated_client_parses_errors_as_the_documented_types(
    api: Api, models: ModuleType, generated: Path
) -> None:
    async with calling(api) as ann, calling(api, "nonsense") as stranger:
        unauthorized = await stranger.get_instance(uuid4())
        absent = await ann.get_instance(uuid4())
        invalid = await ann.create_instance(body=models.CreateInstance(region_id="mars", tier_id="starter"))
        health = await ann.ready()

    assert isinstance(unauthorized, models.HTTPError)
    assert absent.detail == "Instance not found"
    assert [problem.loc for problem in invalid.detail] == [["body", "region_id"]]
    assert health.checks.to_dict() == {"database": "ok", "redis": "ok"}
