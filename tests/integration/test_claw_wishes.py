"""What customers configure beyond prompts, at work in a real agent: channels, integrations, workflows, long memories."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from hydracore.agent.expressclaw.database import Database
from hydracore.agent.expressclaw.notices import Notices, add_notices
from hydracore.agent.expressclaw.webhooks import Webhooks, signature
from hydracore.agent.expressclaw.wishes import IGNORED_MAX, Webhook
from hydracore.modelsim.embedding import BROKEN
from hydracore.modelsim.script import MARK
from hydracore.vps import AgentAddress, VpsClient
from tests.agent_process import AgentProcess
from tests.claw_fixtures import (
    Claw,
    agent_fixture,
    claw_fixture,
    connected,
    control_plane_fixture,
    document,
    modelsim_fixture,
    vps_fixture,
)
from tests.fake_control_plane import FakeControlPlane
from tests.fake_telegram import TOKEN, running_telegram
from tests.modelsim_fixtures import ModelSim
from tests.raw_endpoint import raw_endpoint
from tests.refusing import refusing
from tests.waiting import PATIENCE_S, until

__all__ = ["agent_fixture", "claw_fixture", "control_plane_fixture", "modelsim_fixture", "vps_fixture"]


class Receiver:
    """A web server that takes what webhooks send, or answers as a test wishes."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.refused = 0
        self.taken: list[tuple[dict[str, str], bytes]] = []

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        async with await asyncio.start_server(self._answer, "127.0.0.1", 0) as server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
            yield

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")[1:-2]
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                content = await reader.readexactly(int(headers["content-length"]))
                if self.status == 200:
                    self.taken.append((headers, content))
                else:
                    self.refused += 1
                writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: 0\r\n\r\n".encode())
        except asyncio.IncompleteReadError:
            writer.close()

    async def until_taken(self, count: int) -> list[dict[str, Any]]:
        await until(lambda: len(self.taken) >= count)
        return [json.loads(content) for _, content in self.taken]


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver]:
    one = Receiver()
    async with one.serving():
        yield one


def platform(**parts: Any) -> dict[str, Any]:
    return {"skills": [], "integrations": [], "channels": {}, "advanced": {}, **parts}


def webhook(receiver: Receiver) -> dict[str, Any]:
    return {"id": "crm", "type": "webhook", "url": receiver.url, "secret": "of-the-hook"}


async def use(claw: Claw, control_plane: FakeControlPlane, runtime: dict[str, Any]) -> dict[str, Any]:
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


async def test_what_is_not_used_is_told_at_once_and_in_the_status(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    runtime = document(modelsim, platform=platform(channels={"slack": {}}, integrations=["calendar"]))
    runtime |= {
        "workflow_slugs": ["known", "gone"],
        "workflows": [{"slug": "known", "when": "asked", "steps": ["Go."]}],
    }

    answer = await use(claw, control_plane, runtime)
    status = await claw.status()

    paths = ["platform.channels.slack", "platform.integrations.0", "workflow_slugs.1"]
    assert [each["path"] for each in answer["ignored"]] == paths
    assert status["ignored"] == answer["ignored"]
    assert status["connections"] == {"telegram": "off", "slack": "unsupported", "integration:calendar": "unsupported"}
    assert status["workflows_loaded"] == ["known"]
    assert "1. Go." in (await claw.chat("What are your instructions?"))["message"]


async def test_a_status_stays_readable_however_much_of_a_configuration_is_not_used(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, vps: VpsClient
) -> None:
    # JSON takes six bytes for each of these characters.
    channels = {f"{number}{chr(1) * 200}": {} for number in range(300)}
    short = {f"c{number}": {} for number in range(16_000)}
    where = AgentAddress(*control_plane.listen, control_plane.control_token)

    await use(claw, control_plane, document(modelsim, platform=platform(channels=channels, integrations=[*channels])))
    of_long_names = await vps.status(where)
    await use(claw, control_plane, document(modelsim, platform=platform(channels=short)))
    of_many_names = await vps.status(where)

    for status in (of_long_names, of_many_names):
        assert len(status.ignored) == len(status.connections) - 1 == IGNORED_MAX


async def test_a_channel_answers_those_it_may_and_tells_the_others_their_number(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    async with running_telegram() as telegram:
        channel = {"bot_token": TOKEN, "allowed_user_ids": [77]}
        runtime = document(modelsim, telegram={"bot_token": None, "base_url": telegram.url})
        runtime["platform"] = platform(channels={"telegram": channel})
        await use(claw, control_plane, runtime)
        await until_connection(claw, "telegram", "connected")

        await telegram.write("Hello", chat=5, sender=77)
        await telegram.write("Let me in", chat=6, sender=78)
        sent = dict(await telegram.until_sent(2))
        runtime["platform"] = platform(channels={"telegram": {**channel, "enabled": False}})
        await use(claw, control_plane, runtime)

        assert sent[5] == f"{MARK} You said: Hello"
        assert "78" in sent[6]
        await until_connection(claw, "telegram", "off")
    assert len(await modelsim.requests()) == 1


async def test_a_webhook_is_told_of_each_chat_and_of_no_word_in_it(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, receiver: Receiver
) -> None:
    await use(claw, control_plane, document(modelsim, platform=platform(integrations=[webhook(receiver)])))
    await until_connection(claw, "integration:crm", "ready")

    answer = await claw.chat("Confidential words", "c-1", end_user="mallory")
    (told,) = await receiver.until_taken(1)

    await until_connection(claw, "integration:crm", "connected")
    headers, content = receiver.taken[0]
    assert headers["x-hydracore-signature"] == signature("of-the-hook", content)
    assert (told["event"], told["conversation_id"], told["model"]) == ("chat.done", "c-1", "first")
    assert (told["channel"], told["usage"]) == ("api", answer["usage"])
    assert b"onfidential" not in content
    assert b"mallory" not in content


async def test_a_webhook_that_is_away_is_told_afterwards_in_order_also_by_the_next_process(
    control_plane: FakeControlPlane, agent: AgentProcess, modelsim: ModelSim, receiver: Receiver
) -> None:
    receiver.status = 503
    control_plane.runtime = document(modelsim, platform=platform(integrations=[webhook(receiver)]))
    agent.start()
    await control_plane.until_healthy()
    async with connected(control_plane) as claw:
        for number in range(3):
            await claw.chat("Hello", f"c-{number}")
        await until(lambda: receiver.refused > 0)
        await until_connection(claw, "integration:crm", "error: it answers HTTP 503")
        assert (await claw.status())["error"]["code"] == "integration_failed"

    await agent.kill()
    receiver.status = 200
    control_plane.heartbeats.clear()
    agent.start()
    told = await receiver.until_taken(3)

    assert [each["conversation_id"] for each in told] == ["c-0", "c-1", "c-2"]
    assert len({each["id"] for each in told}) == 3


@pytest.fixture
def database(tmp_path: Path) -> Generator[Database]:
    database = Database(tmp_path / "chats.sqlite", new_id=uuid4)
    yield database
    database.close()


@pytest.mark.parametrize(
    ("url", "state"),
    [
        ("http://xn--ls8h.test/hook", "error: it cannot be reached (InvalidCodepoint)"),
        ("http://127.0.0.1:70000/hook", "error: it cannot be told (ExceptionGroup)"),
    ],
)
async def test_a_webhook_whose_address_breaks_the_libraries_below_is_in_trouble_alone(
    database: Database, receiver: Receiver, url: str, state: str
) -> None:
    notices = Notices(database)
    webhooks = Webhooks(notices)
    # Addresses that no configuration gets past `read_wishes`.
    webhooks.use((Webhook(id="bad", url=url), Webhook(id="good", url=receiver.url)))
    await database.run(lambda db: add_notices(db, {"bad": "{}", "good": "{}"}))

    with capture_logs():
        running = asyncio.create_task(webhooks.run())
        await receiver.until_taken(1)
        await until(lambda: webhooks.states == {"integration:bad": state, "integration:good": "connected"})

    assert not running.done()
    assert webhooks.error is not None
    assert webhooks.error.code == "integration_failed"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_webhook_whose_notices_the_disk_refuses_is_in_trouble_and_goes_on_once_it_does_not(
    database: Database, receiver: Receiver, tmp_path: Path
) -> None:
    notices = Notices(database)
    webhooks = Webhooks(notices)
    webhooks.use((Webhook(id="crm", url=receiver.url),))
    await database.run(lambda db: add_notices(db, {"crm": "{}"}))

    with refusing(tmp_path / "chats.sqlite", "DELETE ON notice"):
        running = asyncio.create_task(webhooks.run())
        await until(lambda: webhooks.error is not None)
    await until(lambda: webhooks.states == {"integration:crm": "connected"})
    assert await notices.next("crm") is None

    # Not to be read, and nothing to tell.
    await database.run(lambda db: db.execute("ALTER TABLE notice RENAME TO hidden"))
    notices.news.set()
    await until(lambda: webhooks.error is not None)
    await database.run(lambda db: db.execute("ALTER TABLE hidden RENAME TO notice"))
    await until(lambda: webhooks.states == {"integration:crm": "ready"})

    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


#: Turns of two messages each that push the first one out of what a model is reminded of.
TURNS = 31


async def fill(claw: Claw) -> None:
    await claw.chat("My dog Bo eats salmon", "c-1")
    for number in range(TURNS):
        await claw.chat(f"Filler number {number}", "c-1")


async def test_what_a_model_has_out_of_sight_is_recalled_by_what_it_means_and_metered(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    await fill(claw)
    before = await claw.chat("Which salmon does the dog like?", "c-1")
    forgotten = (await modelsim.requests())[-1]["messages"]
    runtime = document(modelsim)
    runtime["model_policy"] |= {"embedding_model": "scripted-embedding"}
    runtime["prices"] = {
        **runtime["prices"],
        "scripted-embedding": {"input_usd_per_mtok": "10", "output_usd_per_mtok": "0"},
    }
    await use(claw, control_plane, runtime)
    assert (await claw.status())["connections"]["memory"] == "ready"

    await claw.chat("Which salmon does the dog like?", "c-1")
    recalled = (await modelsim.requests())[-1]["messages"]
    await claw.chat("Something else entirely", "c-1")
    unlike = (await modelsim.requests())[-1]["messages"]

    assert before["model"] == "first"
    assert "Bo eats salmon" not in json.dumps(forgotten)
    assert recalled[1]["role"] == "user"
    assert "user: My dog Bo eats salmon\n" in recalled[1]["content"]
    assert "Bo eats salmon" not in json.dumps(recalled[0]) + json.dumps(unlike)
    asked = (await modelsim.http.get("/_sim/embeddings")).json()["requests"]
    assert "My dog Bo eats salmon" in asked[0]["texts"]
    # What was asked about once is on disk.
    assert len(asked[1]["texts"]) < len(asked[0]["texts"])
    await control_plane.until(lambda: any(each["model"] == "scripted-embedding" for each in control_plane.metered()))
    entry = next(each for each in control_plane.metered() if each["model"] == "scripted-embedding")
    assert (entry["completion_tokens"], entry["conversation_id"]) == (0, "c-1")
    assert float(entry["cost_usd"]) == entry["prompt_tokens"] / 100_000
    assert (await claw.status())["connections"]["memory"] == "connected"


async def test_a_memory_that_fails_keeps_no_chat_from_its_answer(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    await fill(claw)
    runtime = document(modelsim)
    runtime["model_policy"] |= {"embedding_model": BROKEN}
    await use(claw, control_plane, runtime)

    answers = [await claw.chat(f"Hello {number}", "c-1") for number in range(2)]
    status = await claw.status()

    assert [answer["message"] for answer in answers] == [f"{MARK} You said: Hello 0", f"{MARK} You said: Hello 1"]
    assert status["connections"]["memory"] == f"error: {BROKEN}: the endpoint answers HTTP 503"
    assert status["error"]["code"] == "memory_failed"
    # It is left alone for a while, so that not every chat pays for its trouble.
    assert len((await modelsim.http.get("/_sim/embeddings")).json()["requests"]) == 1


async def test_a_question_about_memories_that_is_given_up_is_metered_by_estimate(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    await fill(claw)

    async with raw_endpoint(stays=True) as silent:
        runtime = document(modelsim, model={"base_url": silent.base_url, "api_key": None})
        runtime["model_policy"] |= {"embedding_model": "scripted-embedding"}
        await use(claw, control_plane, runtime)
        asking = asyncio.create_task(claw.ask("Hello", "c-1"))
        async with asyncio.timeout(PATIENCE_S):
            await silent.asked.wait()
        asking.cancel()
        await control_plane.until(
            lambda: any(told["model"] == "scripted-embedding" for told in control_plane.metered())
        )

    entry = control_plane.metered()[-1]
    assert (entry["completion_tokens"], entry["conversation_id"]) == (0, "c-1")
    assert entry["prompt_tokens"] > 0
