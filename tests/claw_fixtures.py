"""A running agent with scripted models to talk to: fixtures for tests of the runtime, to be imported by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from hydracore.agent.agent import Agent
from hydracore.agent.boot_file import BOOT_FILE
from hydracore.transport import EMPTY_TRUST_STORE
from tests.agent_fixtures import agent_client_fixture, agent_fixture, control_plane_fixture
from tests.fake_control_plane import FakeControlPlane
from tests.modelsim_fixtures import ModelSim, modelsim_fixture
from tests.waiting import PATIENCE_S, until

#: What a test module of the runtime imports, so that pytest finds the fixtures.
__all__ = ["agent_client_fixture", "agent_fixture", "claw_fixture", "control_plane_fixture", "modelsim_fixture"]

API_KEY = "sk-0123456789abcdef"
PRICES = {
    "first": {"input_usd_per_mtok": "1000", "output_usd_per_mtok": "2000"},
    "second": {"input_usd_per_mtok": "10", "output_usd_per_mtok": "20"},
}


def document(modelsim: ModelSim, **changes: Any) -> dict[str, Any]:
    """A runtime document as the control plane makes them. A thousand tokens of `first` cost about a dollar."""
    whole = {
        "type": "expressclaw",
        "agent_name": "Ada",
        "preset": {"id": "p", "name": "Preset", "system_prompt": "Be brief, says the preset.", "skills": []},
        "recipe": None,
        "system_prompt": "Owner's words, known to nobody.",
        "customer_facing_prompt": None,
        "workflow_slugs": [],
        "model": {"base_url": modelsim.base_url, "api_key": API_KEY},
        "model_policy": {
            "primary": "first",
            "fallbacks": ["second"],
            "temperature": 0.5,
            "max_tokens": 500,
            "embedding_model": None,
            "budget_daily_usd": None,
            "budget_monthly_usd": None,
        },
        "prices": PRICES,
        "platform": {"skills": [], "integrations": [], "channels": {}, "advanced": {}},
        "telegram": {"bot_token": None, "base_url": "http://127.0.0.1:1"},
        "spent": {"day": "2000-01-01", "daily_usd": "0", "month": "2000-01", "monthly_usd": "0"},
        "some_addition": {"of": "a newer control plane"},
    }
    return {**whole, **changes}


class Claw:
    """The agent's chat API as the control plane uses it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def chat(self, message: str, conversation_id: str | None = None, **options: Any) -> dict[str, Any]:
        answer = await self.ask(message, conversation_id, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ask(
        self, message: str, conversation_id: str | None = None, *, key: str | None = None, end_user: str | None = None
    ) -> httpx.Response:
        body = {"message": message, "conversation_id": conversation_id, "end_user": end_user}
        return await self.http.post("/api/chat", json=body, headers={"Idempotency-Key": key} if key else {})

    async def refused(self, message: str, **options: Any) -> tuple[int, str]:
        """The status and code of a chat that must fail."""
        answer = await self.ask(message, **options)
        return answer.status_code, answer.json()["code"]

    async def stream(
        self, message: str, conversation_id: str | None = None, *, key: str | None = None
    ) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
        """The events as they come, by name."""
        body = {"message": message, "conversation_id": conversation_id}
        # Media types are the same in any case.
        headers = {"Accept": "Text/Event-Stream", **({"Idempotency-Key": key} if key else {})}
        async with self.http.stream("POST", "/api/chat", json=body, headers=headers) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"] == "text/event-stream"
            name = ""
            async for line in response.aiter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)

    async def conversation(self, conversation_id: str) -> list[tuple[str, str]]:
        """Who said what."""
        answer = await self.http.get(f"/api/conversations/{conversation_id}")
        assert answer.status_code == 200
        return [(message["role"], message["content"]) for message in answer.json()["messages"]]

    async def push(self, version: int, runtime: dict[str, Any]) -> httpx.Response:
        return await self.http.put("/api/config", json={"config_version": version, "runtime": runtime})

    async def status(self) -> dict[str, Any]:
        return (await self.http.get("/api/status")).json()


@asynccontextmanager
async def connected(control_plane: FakeControlPlane) -> AsyncGenerator[Claw]:
    """The API of the agent that the control plane knows. What is pushed there is what the control plane wants from then on, unless
    it wants a newer one."""
    host, port = control_plane.listen

    async def want_what_is_pushed(request: httpx.Request) -> None:
        if request.url.path not in {"/api/config", "/api/updates/apply"} or not request.content:
            return
        body = json.loads(request.content)
        version = body.get("config_version")
        if isinstance(version, int) and version > control_plane.config_version:
            control_plane.config_version, control_plane.runtime = version, body["runtime"]

    headers = {"Authorization": f"Bearer {control_plane.control_token}"}
    async with httpx.AsyncClient(
        base_url=f"http://{host}:{port}",
        headers=headers,
        trust_env=False,
        timeout=PATIENCE_S,
        verify=EMPTY_TRUST_STORE,
        event_hooks={"request": [want_what_is_pushed]},
    ) as http:
        yield Claw(http)


@pytest.fixture(name="claw")
async def claw_fixture(
    control_plane: FakeControlPlane, modelsim: ModelSim, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> AsyncGenerator[Claw]:
    """A healthy agent as a task of the test's process, which spares each test a start of Python.

    Whatever a test does with it, in the end it must not have printed a secret.
    """
    control_plane.runtime = document(modelsim)
    root = tmp_path / "vps"
    boot_file = root / BOOT_FILE
    boot_file.parent.mkdir(parents=True)
    boot_file.write_text(control_plane.boot_file())
    running = asyncio.create_task(Agent(root).run())
    await control_plane.until_healthy()
    async with connected(control_plane) as claw:
        yield claw
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    output = "".join(capfd.readouterr())
    for secret in [*control_plane.secret_values(), API_KEY]:
        assert secret not in output
    assert "Traceback" not in output


async def joined_text(events: AsyncGenerator[tuple[str, dict[str, Any]]]) -> tuple[str, tuple[str, dict[str, Any]]]:
    """All tokens of a stream as one text, and its last event."""
    said, last = "", ("", {})
    async for name, content in events:
        last = (name, content)
        if name == "token":
            said += content["text"]
    return said, last


async def shorten_model_timeout(claw: Claw, modelsim: ModelSim, fallbacks: list[str] | None = None) -> None:
    """Models get two seconds: a request must reach them in that time, also on a busy machine."""
    changed = document(modelsim)
    changed["platform"]["advanced"] = {"model_timeout_s": 2.0}
    if fallbacks is not None:
        changed["model_policy"]["fallbacks"] = fallbacks
    answer = await claw.http.put("/api/config", json={"config_version": 4, "runtime": changed})
    assert answer.json() == {"config_version": 4}


async def push_config(claw: Claw, control_plane: FakeControlPlane, runtime: dict[str, Any]) -> dict[str, Any]:
    """Push a configuration; the agent's answer. No failure shows the body: there may be tokens in it."""
    control_plane.runtime = runtime
    control_plane.config_version += 1
    body = {"config_version": control_plane.config_version, "runtime": runtime}
    answer = await claw.http.put("/api/config", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def until_connection(claw: Claw, name: str, state: str) -> None:
    async def is_so() -> bool:
        return (await claw.status())["connections"].get(name) == state

    await until(is_so)


def platform(**parts: Any) -> dict[str, Any]:
    """The documents of a runtime, empty but for these parts."""
    return {"skills": [], "integrations": [], "channels": {}, "advanced": {}, **parts}
