"""The part of the demo in which the agent is used: two ways to chat, a changed prompt, the usage, a rotated key."""

import time
from collections.abc import AsyncGenerator
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx
import msgspec

from hydracore.agent.chat_messages import ChatAnswer
from hydracore.agent.credentials import load_secrets
from hydracore.agent.state import StateDir
from hydracore.cli.development import DevFile
from hydracore.cli.narrator import Narrator, StoryError, expect, wait_until
from hydracore.media_types import EVENT_STREAM

#: The most seconds for each step. A real model may be slow.
CHAT_S_MAX: Final = 90.0
USAGE_S_MAX: Final = 20.0
REFUSED_S_MAX: Final = 1.0
RECOVERED_S_MAX: Final = 30.0

GREETING: Final = "My dog is called Bo."
COUNTING: Final = "Please count to 20."
PROMPT: Final = 'Begin every answer with "Ahoy!", whatever you are asked.'
EXPECTED_PREFIX: Final = "Ahoy!"
QUESTION: Final = "What did I say before?"
LAST_QUESTION: Final = "Are you still there?"


class StoryUse:
    """Uses the instance. `api`: authenticated as the customer. `disk`: the root of the agent's simulated server."""

    def __init__(
        self, file: DevFile, api: httpx.AsyncClient, narrator: Narrator, instance_id: UUID, *, disk: Path
    ) -> None:
        self._file = file
        self._api = api
        self._narrator = narrator
        self._path = f"/v1/instances/{instance_id}"
        self._instance_id = instance_id
        self._disk = disk
        self._answers: list[ChatAnswer] = []

    async def run(self) -> None:
        """Run this part of the story. Raises `StoryError` and httpx's errors."""
        chapter = self._narrator.chapter
        chapter("The customer chats: POST /v1/instances/{id}/chat")
        self._narrator.say(self._who_answers())
        conversation_id = await self._chat(GREETING)
        chapter("The same as a stream of server-sent events, shown as they come")
        await self._chat_streamed(COUNTING)
        chapter("The next answer follows a changed prompt: POST /v1/instances/{id}/config")
        await self._change_prompt(conversation_id)
        chapter("Its usage, in a read table that follows the log: GET /v1/instances/{id}/usage")
        await self._read_usage()
        chapter("The agent's key is rotated: POST /v1/instances/admin/{id}/rotate-key")
        await self._rotate_key(conversation_id)

    def _who_answers(self) -> str:
        if self._file.modelsim_url is None:
            return "the endpoint at HYDRACORE_MODEL_BASE_URL answers"
        return "a script answers (`hydracore modelsim`), no model; set HYDRACORE_MODEL_BASE_URL to use a real endpoint"

    async def _chat(self, message: str, conversation_id: str | None = None) -> str:
        """Ask one question, and print the answer. Returns the conversation's id."""
        body = {"message": message, "conversation_id": conversation_id}
        self._narrator.say(f"> {message}")
        content = expect(await self._api.post(f"{self._path}/chat", json=body, timeout=CHAT_S_MAX), 200)
        answer = self._record_answer(content)
        self._narrator.say(answer.message)
        self._narrator.say(_figures(answer))
        return answer.conversation_id

    async def _chat_streamed(self, message: str) -> None:
        self._narrator.say(f"> {message}")
        asked_s = time.monotonic()
        arrived_s: list[float] = []

        async def words() -> AsyncGenerator[str]:
            async for name, content in self._events(message):
                if name == "token":
                    arrived_s.append(time.monotonic() - asked_s)
                    yield content["text"]
                elif name == "done":
                    self._record_answer(content)
                else:
                    raise StoryError(f"the stream ended with {name}: {content}")

        before = len(self._answers)
        await self._narrator.stream_line(words())
        if len(self._answers) == before:
            raise StoryError("the stream ended without a `done` event")
        self._narrator.say(
            f"first token after {arrived_s[0]:.2f} s, {len(arrived_s)} tokens in {arrived_s[-1]:.2f} s; "
            + _figures(self._answers[-1])
        )

    async def _events(self, message: str) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
        """The events of a streamed answer, by name."""
        headers = {"Accept": EVENT_STREAM}
        body = {"message": message}
        async with self._api.stream(
            "POST", f"{self._path}/chat", json=body, headers=headers, timeout=CHAT_S_MAX
        ) as answer:
            if answer.status_code != HTTPStatus.OK:
                await answer.aread()
                expect(answer, 200)
            name = ""
            async for line in answer.aiter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, msgspec.json.decode(value, type=dict[str, Any])

    async def _change_prompt(self, conversation_id: str) -> None:
        self._narrator.say(f"system_prompt: {PROMPT}")
        changed = expect(await self._api.post(f"{self._path}/config", json={"system_prompt": PROMPT}), 200)
        self._narrator.say(changed["message"])
        if not changed["applied"]:
            raise StoryError("the agent did not take the configuration")
        await self._chat(QUESTION, conversation_id)
        if EXPECTED_PREFIX not in self._answers[-1].message:
            raise StoryError(f"the answer does not obey: {self._answers[-1].message}")

    async def _read_usage(self) -> None:
        """Check the usage. It arrives late: the agent reports it a moment later, and the read table follows the log."""
        usage: dict[str, Any] = {}

        async def has_arrived() -> bool:
            usage.update(expect(await self._api.get(f"{self._path}/usage", params={"days": 7}), 200))
            return usage["total_requests"] >= len(self._answers)

        await wait_until(has_arrived, USAGE_S_MAX, "the calls' usage did not arrive")
        expected_usd = sum((Decimal(answer.usage.cost_usd) for answer in self._answers), Decimal(0))
        self._narrator.say(
            f"{usage['total_requests']} calls, {usage['total_tokens']} tokens, {usage['total_cost_usd']} USD, "
            f"as much as the answers said ({expected_usd:f} USD); {len(usage['daily'])} days, those without use included"
        )
        if Decimal(usage["total_cost_usd"]) != expected_usd:
            raise StoryError("the usage is not what the answers said")

    async def _rotate_key(self, conversation_id: str) -> None:
        stolen, boot_id = self._key_on_disk(), await self._boot_id()
        self._narrator.say("suppose somebody has copied the agent's key from its disk: they can do what the agent can")
        if await self._status_with(stolen, boot_id) != HTTPStatus.OK:
            raise StoryError("the agent's key does not work")
        rotated = await self._api.post(
            f"/v1/instances/admin/{self._instance_id}/rotate-key",
            headers={"Authorization": f"Bearer {self._file.admin.token}"},
        )
        began_s = time.monotonic()
        expect(rotated, 200)

        async def is_refused() -> bool:
            return await self._status_with(stolen, boot_id) == HTTPStatus.UNAUTHORIZED

        await wait_until(is_refused, REFUSED_S_MAX, "the old key was not refused")
        self._narrator.say(f"the old key is refused with 401, {(time.monotonic() - began_s) * 1000:.0f} ms later")

        async def has_recovered() -> bool:
            fresh = self._key_on_disk()
            if fresh == stolen or await self._status_with(fresh, boot_id) != HTTPStatus.OK:
                return False
            # `connections` is empty until the agent answers the control plane again.
            return expect(await self._api.get(f"{self._path}/runtime"), 200)["connections"] != {}

        await wait_until(has_recovered, RECOVERED_S_MAX, "the agent did not get a new key")
        self._narrator.say(f"the agent got a new one, {time.monotonic() - began_s:.1f} s after the rotation")
        await self._chat(LAST_QUESTION, conversation_id)

    def _key_on_disk(self) -> str:
        stored = load_secrets(StateDir(self._disk))
        if stored is None:
            raise StoryError("the agent has no key on its disk")
        return stored.secrets.agent_key

    async def _boot_id(self) -> str:
        """The id of the agent's present boot."""
        enrolled = expect(await self._api.get(f"{self._path}/events", params={"type": "agent_enrolled"}), 200)
        return enrolled["events"][-1]["fields"]["boot_id"]

    async def _status_with(self, agent_key: str, boot_id: str) -> int:
        """The status that the control plane answers to a request of the agent with this key."""
        body = {"boot_id": boot_id}
        answer = await self._api.post("/v1/agent/config", json=body, headers={"Authorization": f"Bearer {agent_key}"})
        return answer.status_code

    def _record_answer(self, content: dict[str, Any]) -> ChatAnswer:
        answer = msgspec.convert(content, ChatAnswer)
        self._answers.append(answer)
        return answer


def _figures(answer: ChatAnswer) -> str:
    usage = answer.usage
    return f"({answer.model}: {usage.prompt_tokens} + {usage.completion_tokens} tokens, {usage.cost_usd} USD)"
