"""Webhooks of a real agent: what they are notified of, and what happens when they fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from hydracore.agent.expressclaw.database import Database
from hydracore.agent.expressclaw.features import Webhook
from hydracore.agent.expressclaw.notices import Notices, add_notices
from hydracore.agent.expressclaw.webhooks import ANSWER_BYTES_MAX, Webhooks, signature
from tests.agent_process import AgentProcess
from tests.claw_fixtures import (
    Claw,
    agent_client_fixture,
    agent_fixture,
    claw_fixture,
    connected,
    control_plane_fixture,
    document,
    modelsim_fixture,
    platform,
    push_config,
    until_connection,
)
from tests.fake_control_plane import FakeControlPlane
from tests.modelsim_fixtures import ModelSim
from tests.sqlite_faults import refusing_statements
from tests.waiting import until

__all__ = ["agent_client_fixture", "agent_fixture", "claw_fixture", "control_plane_fixture", "modelsim_fixture"]


class Receiver:
    """A web server that receives what webhooks send, or answers as a test wishes."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.body = b""
        #: The `Content-Length` that it answers with, where that is more than the body has.
        self.promised_bytes = 0
        self.refused = 0
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self._open: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        async with await asyncio.start_server(self._answer, "127.0.0.1", 0) as server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
            try:
                yield
            finally:
                # From Python 3.12 on, a server waits for its connections, which an agent keeps for the next time.
                for writer in self._open:
                    writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")[1:-2]
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                content = await reader.readexactly(int(headers["content-length"]))
                if self.status == 200:
                    self.taken.append((headers, content))
                else:
                    self.refused += 1
                promised = max(self.promised_bytes, len(self.body))
                writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: {promised}\r\n\r\n".encode() + self.body)
                if promised > len(self.body):
                    writer.close()
                    return
        except asyncio.IncompleteReadError:
            writer.close()
        finally:
            self._open.remove(writer)

    async def until_taken(self, count: int) -> list[dict[str, Any]]:
        await until(lambda: len(self.taken) >= count)
        return [json.loads(content) for _, content in self.taken]


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver]:
    one = Receiver()
    async with one.serving():
        yield one


def webhook(receiver: Receiver) -> dict[str, Any]:
    return {"id": "crm", "type": "webhook", "url": receiver.url, "secret": "of-the-hook"}


async def test_a_webhook_is_notified_of_each_chat_without_any_of_its_words(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, receiver: Receiver
) -> None:
    await push_config(claw, control_plane, document(modelsim, platform=platform(integrations=[webhook(receiver)])))
    await until_connection(claw, "integration:crm", "ready")

    answer = await claw.chat("Confidential words", "c-1", end_user="mallory")
    (notice,) = await receiver.until_taken(1)

    await until_connection(claw, "integration:crm", "connected")
    headers, content = receiver.taken[0]
    assert headers["x-hydracore-signature"] == signature("of-the-hook", content)
    assert (notice["event"], notice["conversation_id"], notice["model"]) == ("chat.done", "c-1", "first")
    assert (notice["channel"], notice["usage"]) == ("api", answer["usage"])
    assert b"onfidential" not in content
    assert b"mallory" not in content


async def test_a_webhook_that_was_down_is_notified_later_in_order_even_after_kill_9_of_the_agent(
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
        await until_connection(claw, "integration:crm", "error: the receiver answered HTTP 503")
        assert (await claw.status())["error"]["code"] == "integration_failed"

    await agent.kill()
    receiver.status = 200
    control_plane.heartbeats.clear()
    agent.start()
    received = await receiver.until_taken(3)

    assert [each["conversation_id"] for each in received] == ["c-0", "c-1", "c-2"]
    assert len({each["id"] for each in received}) == 3


async def test_no_webhook_is_notified_of_a_chat_whose_caller_left(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, receiver: Receiver
) -> None:
    await push_config(claw, control_plane, document(modelsim, platform=platform(integrations=[webhook(receiver)])))
    await modelsim.fault("hold", after_tokens=2)
    async with aclosing(claw.stream("Hello", "c-0")) as events:
        await anext(events)
    await control_plane.until(lambda: len(control_plane.metered()) == 1)

    await modelsim.release()
    await claw.chat("Hello", "c-1")

    assert [each["conversation_id"] for each in await receiver.until_taken(1)] == ["c-1"]
    assert len(await claw.conversation("c-0")) == 2


async def test_only_the_latest_notices_of_configured_webhooks_are_kept(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.agent.expressclaw.notices.NOTICES_MAX", 2)
    notices = Notices(database)
    for content in ("1", "2", "3"):
        await database.run(lambda db, content=content: add_notices(db, {"crm": content, "gone": content}))

    Webhooks(notices).use((Webhook(id="crm", url="https://crm.test/hook"),))

    kept = await notices.oldest("crm")
    assert kept is not None
    assert kept.content == "2"
    assert await notices.oldest("gone") is None


async def test_a_redirect_of_a_webhook_does_not_count_as_delivery(database: Database, receiver: Receiver) -> None:
    receiver.status = 302
    webhooks = Webhooks(Notices(database))
    webhooks.use((Webhook(id="crm", url=receiver.url),))
    await database.run(lambda db: add_notices(db, {"crm": "1"}))

    running = asyncio.create_task(webhooks.run())
    await until(lambda: webhooks.states == {"integration:crm": "error: the receiver answered HTTP 302"})
    receiver.status = 200

    assert await receiver.until_taken(1) == [1]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(("body", "promised_bytes"), [(b"x" * (ANSWER_BYTES_MAX + 1), 0), (b"", 9)])
async def test_a_notice_is_not_sent_again_after_status_200_even_if_the_body_is_too_large_or_truncated(
    database: Database, receiver: Receiver, body: bytes, promised_bytes: int
) -> None:
    receiver.body, receiver.promised_bytes = body, promised_bytes
    notices = Notices(database)
    webhooks = Webhooks(notices)
    webhooks.use((Webhook(id="crm", url=receiver.url),))
    await database.run(lambda db: [add_notices(db, {"crm": content}) for content in ("1", "2")])

    running = asyncio.create_task(webhooks.run())
    received = await receiver.until_taken(2)

    await until(lambda: webhooks.states == {"integration:crm": "connected"})
    assert received == [1, 2]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def database(tmp_path: Path) -> Generator[Database]:
    database = Database(tmp_path / "chats.sqlite", new_id=uuid4)
    yield database
    database.close()


@pytest.mark.parametrize(
    ("url", "state"),
    [
        ("http://xn--ls8h.test/hook", "error: the receiver cannot be reached (InvalidCodepoint)"),
        ("http://127.0.0.1:70000/hook", "error: the request failed (ExceptionGroup)"),
    ],
)
async def test_a_webhook_whose_url_makes_the_http_library_fail_affects_no_other_webhook(
    database: Database, receiver: Receiver, url: str, state: str
) -> None:
    notices = Notices(database)
    webhooks = Webhooks(notices)
    # Addresses that no configuration gets past `read_features`.
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


async def test_a_webhook_whose_notices_cannot_be_read_or_deleted_reports_an_error_until_they_can(
    database: Database, receiver: Receiver, tmp_path: Path
) -> None:
    notices = Notices(database)
    webhooks = Webhooks(notices)
    webhooks.use((Webhook(id="crm", url=receiver.url),))
    await database.run(lambda db: add_notices(db, {"crm": "{}"}))

    with refusing_statements(tmp_path / "chats.sqlite", "DELETE ON notice"):
        running = asyncio.create_task(webhooks.run())
        await until(lambda: webhooks.error is not None)
    await until(lambda: webhooks.states == {"integration:crm": "connected"})
    assert await notices.oldest("crm") is None

    # Now notices cannot be read, and there is none to send.
    await database.run(lambda db: db.execute("ALTER TABLE notice RENAME TO hidden"))
    notices.notices_added.set()
    await until(lambda: webhooks.error is not None)
    await database.run(lambda db: db.execute("ALTER TABLE hidden RENAME TO notice"))
    await until(lambda: webhooks.states == {"integration:crm": "ready"})

    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
