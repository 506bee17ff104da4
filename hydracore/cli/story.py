"""The life of one instance over HTTP, checked step by step: the main promise of the product, told to a stranger."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import httpx
import psutil
import psycopg
from rich.console import Console

from events.sql import Statements
from hydracore.cli.development import DevFile
from hydracore.cli.follow import Follower

_HELD: Final = Statements("hydracore.cli", "story.sql")["held"]

#: Limits of the steps; a machine that needs longer has something wrong with it.
RUNNING_S_MAX: Final = 30.0
HEARTBEAT_S_MAX: Final = 10.0
DELETED_S_MAX: Final = 20.0
POLL_S: Final = 0.1
REQUEST_S_MAX: Final = 10.0

#: An instance in one of these will not become `running` any more.
DEAD_ENDS: Final = frozenset({"failed", "error", "deleting", "deleted"})


class StoryError(Exception):
    """The story took another turn; `str()` says which."""


class Story:
    """One customer's instance, from the request to nothing left."""

    def __init__(self, file: DevFile, console: Console) -> None:
        self._file = file
        self._console = console
        bearer = {"Authorization": f"Bearer {file.customer.token}"}
        self._api = httpx.AsyncClient(base_url=file.url, headers=bearer, timeout=REQUEST_S_MAX, trust_env=False)
        provider = {"Authorization": f"Bearer {file.cloudsim_token}"}
        self._provider = httpx.AsyncClient(
            base_url=file.cloudsim_url, headers=provider, timeout=REQUEST_S_MAX, trust_env=False
        )

    async def tell(self) -> None:
        """Raises `StoryError` where a step does not go as promised, and httpx's and psycopg's errors as they are."""
        async with self._api, self._provider:
            self._title("1  A customer asks for an agent: POST /v1/instances")
            instance_id = await self._create()
            async with self._following(instance_id) as follower:
                self._title("2  Everything that happens is an event in the log")
                await self._until_running(instance_id)
                self._title("3  The server runs, and its agent reports")
                pid = await self._see_agent(instance_id)
                self._title("4  The customer deletes it: DELETE /v1/instances/{id}")
                await self._delete(instance_id)
                await asyncio.sleep(2 * POLL_S)  # The follower catches up; nothing depends on it but what is shown.
            self._title("5  Nothing is left")
            await self._check_nothing_left(instance_id, pid=pid, events=follower.count)

    async def _create(self) -> UUID:
        body = {"region_id": "local", "tier_id": "starter", "agent_name": "Ada", "idempotency_key": "demo"}
        answer = self._expect(await self._api.post("/v1/instances", json=body), 202)
        self._say(f"accepted at once: instance {answer['instance_id']}")
        return UUID(answer["instance_id"])

    async def _until_running(self, instance_id: UUID) -> None:
        async def running() -> bool:
            detail = self._expect(await self._api.get(f"/v1/instances/{instance_id}"), 200)
            if detail["status"] in DEAD_ENDS:
                raise StoryError(f"the instance became {detail['status']}: {detail['error_message']}")
            return detail["status"] == "running"

        await self._until(running, RUNNING_S_MAX, "the instance did not become running")

    async def _see_agent(self, instance_id: UUID) -> int:
        """The agent's process and two of its heartbeats; its pid."""
        servers = self._expect(await self._provider.get("/_sim/servers"), 200)["servers"]
        if len(servers) != 1 or not servers[0]["alive"]:
            raise StoryError(f"the provider shows {len(servers)} servers, not one that is alive")
        pid = int(servers[0]["pid"])
        self._say(f"server {servers[0]['name']}, whose agent is process {pid}")
        seen: list[dict[str, Any]] = []

        async def beaten_twice() -> bool:
            runtime = self._expect(await self._api.get(f"/v1/instances/{instance_id}/runtime"), 200)
            if runtime["last_heartbeat"] and runtime["last_heartbeat"] not in [each["last_heartbeat"] for each in seen]:
                self._say(f"heartbeat at {runtime['last_heartbeat']}")
                seen.append(runtime)
            return len(seen) == 2  # noqa: PLR2004 - one could be the last sign of life

        await self._until(beaten_twice, HEARTBEAT_S_MAX, "the agent did not report twice")
        shown = (
            "status",
            "health_status",
            "provisioning_stage",
            "bootstrap_stage",
            "uptime_seconds",
            "active_connections",
        )
        self._say("GET /runtime: " + ", ".join(f"{name}={seen[-1][name]}" for name in shown))
        return pid

    async def _delete(self, instance_id: UUID) -> None:
        self._expect(await self._api.delete(f"/v1/instances/{instance_id}"), 202, 200)

        async def deleted() -> bool:
            detail = self._expect(await self._api.get(f"/v1/instances/{instance_id}"), 200)
            return detail["status"] == "deleted"

        await self._until(deleted, DELETED_S_MAX, "the instance was not deleted")

    async def _check_nothing_left(self, instance_id: UUID, *, pid: int, events: int) -> None:
        """Provider, processes, reservations and log must all say the same."""
        servers = self._expect(await self._provider.get("/v1/servers"), 200)["servers"]
        if servers:
            raise StoryError(f"the provider still has {[server['name'] for server in servers]}")
        self._say("the provider has no server")
        if psutil.pid_exists(pid):
            raise StoryError(f"the agent's process {pid} is still there")
        self._say(f"the agent's process {pid} is gone")
        async with await psycopg.AsyncConnection.connect(self._file.database_url) as connection:
            held = await (await connection.execute(_HELD, {"instance_id": instance_id})).fetchall()
        if held:
            raise StoryError(f"still reserved: {held}")
        self._say("its host name, address and server id are free again")
        listed = self._expect(await self._api.get("/v1/instances"), 200)["instances"]
        if listed:
            raise StoryError("the instance is still listed")
        self._say(f"the log keeps the whole story: {events} events, status deleted")

    @asynccontextmanager
    async def _following(self, instance_id: UUID) -> AsyncGenerator[Follower]:
        follower = Follower(self._file.database_url, instance_id, self._console)
        following = asyncio.create_task(follower.run())
        try:
            yield follower
        finally:
            following.cancel()
            await asyncio.wait((following,))

    async def _until(self, condition: Callable[[], Awaitable[bool]], seconds_max: float, complaint: str) -> None:
        try:
            async with asyncio.timeout(seconds_max):
                while not await condition():  # noqa: ASYNC110 - another process sets no Event
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise StoryError(f"{complaint} within {seconds_max:g} s") from None

    def _expect(self, answer: httpx.Response, *wanted: int) -> dict[str, Any]:
        if answer.status_code not in wanted:
            path = answer.request.url.path
            raise StoryError(f"{answer.request.method} {path} answered {answer.status_code}: {answer.text[:500]}")
        return answer.json()

    def _title(self, text: str) -> None:
        self._console.print()
        self._console.print(text, style="bold", highlight=False, soft_wrap=True)

    def _say(self, text: str) -> None:
        self._console.print(f"  {text}", highlight=False, soft_wrap=True)
