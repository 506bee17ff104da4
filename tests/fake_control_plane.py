"""A small real control plane for tests of the agent: its seven endpoints on a loopback port, with scriptable trouble.

It keeps the protocol's rules by itself (one key per token, secrets until acknowledged, dense callbacks), so that an agent
which breaks one is refused here as it would be in production. A test can add faults: lost replies, forced statuses, calls
that are held while a process is killed, and an outage of the whole server.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import socket
from base64 import b64decode
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hydracore.http_server import EmbeddedServer, uvicorn_config
from tests.waiting import PATIENCE_S

#: The endpoints that an agent calls: `secrets/ack` where a key replaces another, the others with every first boot.
ENDPOINTS = ("enroll", "secrets", "secrets/ack", "callback", "heartbeat")


class ConnectionLost(Exception):
    """The connection breaks instead of an answer."""


@dataclass
class Call:
    """One request as it arrived. `status` is None while unanswered, and for ever when the answer was lost."""

    endpoint: str
    body: dict[str, Any]
    status: int | None = None


@dataclass
class Hold:
    """A call of one endpoint stops here until released."""

    when: str
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)


class FakeControlPlane:
    """Start it, write `boot_file()` below an agent's root, start the agent, wait with `until`."""

    def __init__(self, *, listen: tuple[str, int], heartbeat_interval_s: float = 0.1) -> None:
        self.instance_id = str(uuid4())
        self.attempt = 1
        self.enrol_token = secrets.token_urlsafe(32)
        self.control_token = secrets.token_urlsafe(32)
        self.agent_key = ""
        self.key_id: str | None = None
        self.acknowledged = False
        self.listen = listen
        self.heartbeat_interval_s = heartbeat_interval_s
        #: What its answers to heartbeats say of the interval; those of an older control plane say nothing.
        self.answered_interval_s: float | None = None
        self.config_version = 3
        self.runtime: dict[str, Any] = {"type": "expressclaw", "system_prompt": f"prompt-{secrets.token_hex(8)}"}
        self.token_refused = False
        self.gone = False
        self.public_keys: dict[str, str] | None = None
        self.boot_id: str | None = None
        self.boots: list[str] = []
        self.accepted: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.heartbeats: list[dict[str, Any]] = []
        self.usage: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.calls: list[Call] = []
        self.issued_keys: list[str] = []
        self.on_ack: Callable[[], None] = lambda: None
        self._troubles: dict[str, deque[str | int | tuple[int, dict[str, Any]]]] = defaultdict(deque)
        self._holds: dict[str, Hold] = {}
        self._news = asyncio.Condition()
        self._port = 0
        self._server: EmbeddedServer | None = None
        self._serving: asyncio.Task[None] | None = None

    # --- for tests: running it ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve; after a `stop`, on the same port again."""
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.bind(("127.0.0.1", self._port))
        bound.listen()
        self._port = bound.getsockname()[1]
        self._server = EmbeddedServer(uvicorn_config(self, timeout_graceful_shutdown=1))
        self._serving = asyncio.create_task(self._server.serve(sockets=[bound]))

    async def stop(self) -> None:
        """Close all connections and refuse new ones."""
        for hold in self._holds.values():
            hold.released.set()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
            self._server = None

    def boot_file(self) -> str:
        content = {
            "control_plane_url": f"http://127.0.0.1:{self._port}",
            "instance_id": self.instance_id,
            "attempt": self.attempt,
            "enrol_token": self.enrol_token,
        }
        return json.dumps(content)

    def secret_values(self) -> list[str]:
        """What no output of an agent may contain."""
        given = [self.enrol_token, self.control_token, *self.issued_keys]
        runtime = self.runtime
        kept = [runtime.get("system_prompt"), runtime.get("customer_facing_prompt")]
        kept += [runtime.get("model", {}).get("api_key"), runtime.get("telegram", {}).get("bot_token")]
        return [*given, *(secret for secret in kept if secret)]

    def configure(self, **changes: Any) -> None:
        """A newer configuration, which agents learn of from their next heartbeat."""
        self.runtime = {**self.runtime, **changes}
        self.config_version += 1

    def metered(self) -> list[dict[str, Any]]:
        """The usage entries of all ledgers, in order."""
        return [entry for batches in self.usage.values() for batch in batches for entry in batch["entries"]]

    def lose_usage(self, count: int) -> None:
        """Forget the latest batches, as after a restore from a backup."""
        for batches in self.usage.values():
            del batches[-count:]

    # --- for tests: trouble ------------------------------------------------------------------------------------------

    def script(self, endpoint: str, *kinds: str | int | tuple[int, dict[str, Any]]) -> None:
        """The next calls of `endpoint` meet these faults, one each: "request_lost", "reply_lost", "fine", a status, or a whole answer."""
        self._troubles[endpoint].extend(kinds)

    def hold(self, endpoint: str, when: str) -> Hold:
        """Stop the next call of `endpoint` "before" or "after" it is applied, and lose its answer; or let that come "late"."""
        self._holds[endpoint] = Hold(when)
        return self._holds[endpoint]

    def rotate_key(self) -> None:
        """Revoke the key at once and allow one fresh issue."""
        self.key_id, self.acknowledged = None, False

    def lose_callbacks(self, count: int) -> None:
        """Forget the latest callbacks, as after a restore from a backup."""
        assert self.boot_id is not None
        del self.accepted[self.boot_id][-count:]

    # --- for tests: what happened ------------------------------------------------------------------------------------

    def callbacks(self, boot_id: str | None = None) -> list[dict[str, Any]]:
        """The callbacks accepted of a boot, by default the latest one."""
        return self.accepted[boot_id or self.boot_id or ""]

    def stages(self, boot_id: str | None = None) -> list[str]:
        return [callback["stage"] for callback in self.callbacks(boot_id)]

    def call_order(self) -> list[str]:
        """The endpoints in the order of their calls, heartbeats and callbacks left out."""
        return [call.endpoint for call in self.calls if call.endpoint not in {"callback", "heartbeat"}]

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that a call makes true."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(happened)

    async def until_healthy(self) -> None:
        await self.until(lambda: self.stages()[-1:] == ["healthy"] and bool(self.heartbeats))

    # --- the server --------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        endpoint = scope["path"].removeprefix("/v1/agent/")
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        call = Call(endpoint, json.loads(body))
        self.calls.append(call)
        try:
            status, answer = await self._meet_trouble(call, headers, body)
        except ConnectionLost:
            # A promise of a body that never comes makes uvicorn cut the connection.
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            raise
        else:
            call.status = status
            content = json.dumps(answer).encode()
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": content})
        finally:
            async with self._news:
                self._news.notify_all()

    async def _meet_trouble(self, call: Call, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        troubles = self._troubles[call.endpoint]
        trouble = troubles.popleft() if troubles else "fine"
        hold = self._holds.pop(call.endpoint, None)
        if hold is not None and hold.when == "before":
            hold.reached.set()
            await hold.released.wait()
            raise ConnectionLost
        if trouble == "request_lost":
            raise ConnectionLost
        if isinstance(trouble, int):
            return trouble, {"detail": "scripted"}
        if isinstance(trouble, tuple):
            return trouble
        answer = self._answer(call, headers, body)
        if hold is not None:
            hold.reached.set()
            await hold.released.wait()
            if hold.when != "late":
                raise ConnectionLost
        if trouble == "reply_lost":
            raise ConnectionLost
        return answer

    def _answer(self, call: Call, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        if self.gone:
            return 410, {"detail": "gone"}
        match call.endpoint:
            case "enroll":
                return self._enroll(call.body)
            case "secrets":
                return self._secrets(call.body, headers, body)
        if self.key_id is None or headers.get("authorization") != f"Bearer {self.agent_key}":
            return 401, {"detail": "unknown key"}
        if call.endpoint != "usage" and call.body["boot_id"] != self.boot_id:
            return 410, {"detail": "a later boot has enrolled"}
        match call.endpoint:
            case "secrets/ack":
                return self._ack(call.body)
            case "callback":
                return self._callback(call.body)
            case "heartbeat":
                self.heartbeats.append(call.body)
                told = {} if self.answered_interval_s is None else {"heartbeat_interval_s": self.answered_interval_s}
                return 200, {"config_version": self.config_version, **told}
            case "config":
                assert set(call.body) == {"boot_id", "config_version"}
                return 200, {"config_version": self.config_version, "runtime": self.runtime}
            case "usage":
                return self._usage(call.body)
        return 404, {"detail": "no such endpoint"}

    def _enroll(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert set(body) == {"instance_id", "attempt", "token", "boot_id", "public_keys"}
        if self.token_refused or body["token"] != self.enrol_token:
            return 401, {"detail": "bad token"}
        if self.public_keys not in (None, body["public_keys"]):
            return 409, {"detail": "another key"}
        if body["boot_id"] in self.boots[:-1]:
            return 410, {"detail": "a later boot has enrolled"}
        self.public_keys = body["public_keys"]
        if self.boot_id != body["boot_id"]:
            self.boot_id = body["boot_id"]
            self.boots.append(body["boot_id"])
        return 200, {"instance_id": self.instance_id, "attempt": self.attempt, "boot_id": self.boot_id}

    def _secrets(self, body: dict[str, Any], headers: dict[str, str], raw: bytes) -> tuple[int, dict[str, Any]]:
        assert set(body) == {"instance_id", "attempt", "boot_id"}
        if self.public_keys is None or body["boot_id"] != self.boot_id:
            return 401, {"detail": "unknown boot"}
        key = Ed25519PublicKey.from_public_bytes(b64decode(self.public_keys["signing"]))
        try:
            key.verify(b64decode(headers["x-agent-signature"]), raw)
        except InvalidSignature:
            return 401, {"detail": "bad signature"}
        if self.acknowledged:
            return 409, {"detail": "acknowledged"}
        if self.key_id is None:
            self.key_id = str(uuid4())
            self.agent_key = hashlib.sha256(secrets.token_bytes(32)).hexdigest()
            self.issued_keys.append(self.agent_key)
        host, port = self.listen
        return 200, {
            "key_id": self.key_id,
            "agent_key": self.agent_key,
            "control_token": self.control_token,
            "listen": {"host": host, "port": port},
            "heartbeat_interval_s": self.heartbeat_interval_s,
            "config_version": self.config_version,
            "runtime": self.runtime,
        }

    def _ack(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body != {"boot_id": self.boot_id, "key_id": self.key_id}:
            return 409, {"detail": "another key"}
        self.on_ack()
        self.acknowledged = True
        return 200, {}

    def _callback(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        first = {name: value for name, value in body.items() if name not in {"following", "key_id"}}
        assert set(first) == {"boot_id", "seq", "stage", "level", "message"}
        if "key_id" in body:
            status, refusal = self._ack({"boot_id": body["boot_id"], "key_id": body["key_id"]})
            if status != 200:
                return status, refusal
        told = self.accepted[body["boot_id"]]
        if body["seq"] > len(told) + 1:
            return 409, {"detail": "gap", "expected_seq": len(told) + 1}
        each_told = enumerate([first, *body.get("following", [])], start=body["seq"])
        sent = [{**each, "boot_id": body["boot_id"], "seq": seq} for seq, each in each_told]
        known, new = sent[: len(told) + 1 - body["seq"]], sent[len(told) + 1 - body["seq"] :]
        assert known == told[body["seq"] - 1 :][: len(known)], "a number was used for two callbacks"
        told += new
        return 200, {"seq": sent[-1]["seq"], "duplicate": not new}

    def _usage(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert set(body) == {"boot_id", "ledger_id", "seq", "entries"}
        assert 1 <= len(body["entries"]) <= 100
        batches = self.usage[body["ledger_id"]]
        if body["seq"] <= len(batches):
            assert batches[body["seq"] - 1]["entries"] == body["entries"], "a number was used for two batches"
            return 200, {"seq": body["seq"], "duplicate": True}
        if body["seq"] != len(batches) + 1:
            return 409, {"detail": "gap", "expected_seq": len(batches) + 1}
        batches.append(body)
        return 200, {"seq": body["seq"], "duplicate": False}
