"""An agent's own API in the test's loop, scripted: what the control plane meets when an agent is slow, cut off or wrong.

It records what it receives (`calls`, `config_version`, `runtime`), and answers normally unless a test scripts something else.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from hydracore.agent_client import AGENT_PORT
from hydracore.http_server import running_server, uvicorn_config
from tests.api_server import listen

#: In a scripted stream: the connection breaks here.
CUT = object()

ANSWER = {
    "conversation_id": "c-1",
    "message": "Hello there",
    "model": "gpt-4.1-mini",
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "cost_usd": "0.000006"},
}


def event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


STREAM: tuple[Any, ...] = (event("token", {"text": "Hello "}), event("token", {"text": "there"}), event("done", ANSWER))


class Call(NamedTuple):
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Any


class TinyAgent:
    """`token`: what callers must show; None for anything."""

    def __init__(self, instance_id: UUID) -> None:
        self.instance_id = instance_id
        self.token: str | None = None
        self.calls: list[Call] = []
        self.config_version: int | None = 1
        self.runtime: dict[str, Any] = {}
        self.stream: tuple[Any, ...] = STREAM
        self.connections = {"telegram": "off"}
        self.restarts = 0
        #: Set once a caller has left before its answer was whole.
        self.caller_left = asyncio.Event()
        #: While cleared, answers are held back.
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        #: While cleared, those to chats alone are.
        self.may_chat = asyncio.Event()
        self.may_chat.set()
        self._scripted: dict[str, deque[tuple[int, Any, dict[str, str]]]] = {}

    def script(self, path: str, status: int, body: Any, **headers: str) -> None:
        """The next call of `path` is answered so."""
        self._scripted.setdefault(path, deque()).append((status, body, headers))

    def calls_of(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.path == path]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body", False):
                break
        path = scope["raw_path"].decode()
        call = Call(scope["method"], path, scope["query_string"].decode(), headers, json.loads(raw) if raw else None)
        self.calls.append(call)
        answering = asyncio.create_task(self._answer(call, send))
        leaving = asyncio.create_task(self._leaving(receive))
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            self.caller_left.set()
        answering.cancel()
        leaving.cancel()
        for outcome in await asyncio.gather(answering, leaving, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def _leaving(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _answer(self, call: Call, send: Any) -> None:
        await self.may_answer.wait()
        if call.path == "/api/chat":
            await self.may_chat.wait()
        scripted = self._scripted.get(call.path)
        if self.token is not None and call.headers.get("authorization") != f"Bearer {self.token}":
            await _send(send, 401, {"detail": "no"})
        elif scripted:
            await _send(send, *scripted.popleft())
        elif call.path == "/api/chat" and "text/event-stream" in call.headers["accept"]:
            await self._send_stream(send)
        else:
            await _send(send, *self._well_behaved(call))

    async def _send_stream(self, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for item in self.stream:
            if isinstance(item, asyncio.Event):
                await item.wait()
            elif item is CUT:
                raise ConnectionError("cut, as scripted")
            else:
                await send({"type": "http.response.body", "body": item, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _well_behaved(self, call: Call) -> tuple[int, Any]:
        match call.method, call.path:
            case "POST", "/api/chat":
                return 200, ANSWER
            case "GET", "/api/status":
                return 200, self._status()
            case "GET", "/api/config":
                return 200, {"config_version": self.config_version, "system_prompt": self.runtime.get("system_prompt")}
            case "PUT", "/api/config":
                self.config_version, self.runtime = call.body["config_version"], call.body["runtime"]
                return 200, {"config_version": self.config_version}
            case "POST", "/api/updates/apply":
                self.config_version, self.runtime = call.body["config_version"], call.body["runtime"]
                self.restarts += call.body["restart"]
                restarted = call.body["restart"]
                answer = {"config_version": self.config_version, "restarted": restarted, "drained": True}
                return 200, {**answer, "skills_loaded": []}
            case "GET", "/api/conversations":
                return 200, {"conversations": [{"id": "c-1", "preview": "Hello"}]}
            case "GET", "/api/conversations/c-1":
                return 200, {"id": "c-1", "messages": [{"role": "user", "content": "Hello"}]}
            case _:
                return 404, {"detail": "Not found", "code": "not_found"}

    def _status(self) -> dict[str, Any]:
        return {
            "instance_id": str(self.instance_id),
            "attempt": 1,
            "boot_id": str(uuid4()),
            "stage": "healthy",
            "healthy": True,
            "runtime": "expressclaw",
            "uptime_seconds": 5,
            "active_connections": 1,
            "versions": {"agent": "1", "openclaw": None, "node": None},
            "skills_loaded": ["notes"],
            "config_version": self.config_version,
            "error": None,
            "connections": self.connections,
        }


async def _send(send: Any, status: int, body: Any, more: Mapping[str, str] = MappingProxyType({})) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **more}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})


@asynccontextmanager
async def serving(agent: TinyAgent, host: str) -> AsyncGenerator[None]:
    """`agent` where the control plane looks for agents: on the fixed port of an address of its own."""
    with listen(host, AGENT_PORT) as listener:
        async with running_server(uvicorn_config(agent, timeout_graceful_shutdown=1), listener):
            yield
            agent.may_answer.set()
            agent.may_chat.set()
