"""The demo: the life of one instance over HTTP, checked step by step, for people who see the product for the first time."""

from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx
import psutil
import psycopg
from rich.console import Console

from events.sql import Statements
from hydracore.cli.development import DevFile
from hydracore.cli.follow import Follower
from hydracore.cli.narrator import Narrator, StoryError, expect, wait_until
from hydracore.cli.story_use import StoryUse

_RESERVATIONS: Final = Statements("hydracore.cli", "story.sql")["reservations"]

#: The most seconds for each step. On a machine that needs longer, something is wrong.
RUNNING_S_MAX: Final = 30.0
HEARTBEAT_S_MAX: Final = 10.0
DELETED_S_MAX: Final = 20.0
REQUEST_S_MAX: Final = 10.0

#: Statuses from which an instance does not become `running`.
DEAD_ENDS: Final = frozenset({"failed", "error", "deleting", "deleted"})


class Story:
    """One customer's instance, from the request until nothing is left. `disks`: the directory of the servers' files."""

    def __init__(self, file: DevFile, console: Console, *, disks: Path) -> None:
        self._file = file
        self._disks = disks
        self._narrator = Narrator(console)
        bearer = {"Authorization": f"Bearer {file.customer.token}"}
        self._api = httpx.AsyncClient(base_url=file.url, headers=bearer, timeout=REQUEST_S_MAX, trust_env=False)
        provider = {"Authorization": f"Bearer {file.cloudsim_token}"}
        self._provider = httpx.AsyncClient(
            base_url=file.cloudsim_url, headers=provider, timeout=REQUEST_S_MAX, trust_env=False
        )

    async def run(self) -> None:
        """Run the story. Raises `StoryError` where a step does not go as expected, and httpx's and psycopg's errors."""
        chapter = self._narrator.chapter
        async with self._api, self._provider:
            chapter("A customer asks for an agent: POST /v1/instances")
            instance_id = await self._create()
            async with Follower(self._file.database_url, instance_id, self._narrator) as follower:
                chapter("Everything that happens is an event in the log")
                await self._until_running(instance_id)
                await follower.wait_until_caught_up()
                chapter("The server runs, and its agent reports")
                server = await self._see_agent(instance_id)
                use = StoryUse(self._file, self._api, self._narrator, instance_id, disk=self._disks / str(server["id"]))
                await use.run()
                chapter("The customer deletes it: DELETE /v1/instances/{id}")
                await self._delete(instance_id)
                await follower.wait_until_caught_up()
            chapter("Nothing is left")
            await self._check_nothing_left(instance_id, pid=int(server["pid"]), events=follower.count)

    async def _create(self) -> UUID:
        body = {"region_id": "local", "tier_id": "starter", "agent_name": "Ada", "idempotency_key": "demo"}
        answer = expect(await self._api.post("/v1/instances", json=body), 202)
        self._narrator.say(f"accepted at once: instance {answer['instance_id']}")
        return UUID(answer["instance_id"])

    async def _until_running(self, instance_id: UUID) -> None:
        async def running() -> bool:
            detail = expect(await self._api.get(f"/v1/instances/{instance_id}"), 200)
            if detail["status"] in DEAD_ENDS:
                raise StoryError(f"the instance became {detail['status']}: {detail['error_message']}")
            return detail["status"] == "running"

        await wait_until(running, RUNNING_S_MAX, "the instance did not become running")

    async def _see_agent(self, instance_id: UUID) -> dict[str, Any]:
        """Show the agent's process and two of its heartbeats. Returns its server as the provider shows it."""
        servers = expect(await self._provider.get("/_sim/servers"), 200)["servers"]
        if len(servers) != 1 or not servers[0]["alive"]:
            raise StoryError(f"the provider shows {len(servers)} servers, not one that is alive")
        self._narrator.say(f"server {servers[0]['name']}, whose agent is process {servers[0]['pid']}")
        heartbeats: list[dict[str, Any]] = []

        async def has_two_heartbeats() -> bool:
            runtime = expect(await self._api.get(f"/v1/instances/{instance_id}/runtime"), 200)
            if runtime["last_heartbeat"] and runtime["last_heartbeat"] not in [
                each["last_heartbeat"] for each in heartbeats
            ]:
                self._narrator.say(f"heartbeat at {runtime['last_heartbeat']}")
                heartbeats.append(runtime)
            return len(heartbeats) == 2  # noqa: PLR2004 - one could be the last sign of life

        await wait_until(has_two_heartbeats, HEARTBEAT_S_MAX, "the agent did not report twice")
        shown = (
            "status",
            "health_status",
            "provisioning_stage",
            "bootstrap_stage",
            "uptime_seconds",
            "active_connections",
        )
        self._narrator.say("GET /runtime: " + ", ".join(f"{name}={heartbeats[-1][name]}" for name in shown))
        return servers[0]

    async def _delete(self, instance_id: UUID) -> None:
        expect(await self._api.delete(f"/v1/instances/{instance_id}"), 202, 200)

        async def deleted() -> bool:
            detail = expect(await self._api.get(f"/v1/instances/{instance_id}"), 200)
            return detail["status"] == "deleted"

        await wait_until(deleted, DELETED_S_MAX, "the instance was not deleted")

    async def _check_nothing_left(self, instance_id: UUID, *, pid: int, events: int) -> None:
        """Check at the provider, the processes, the reservations and the log that nothing is left."""
        say = self._narrator.say
        servers = expect(await self._provider.get("/v1/servers"), 200)["servers"]
        if servers:
            raise StoryError(f"the provider still has {[server['name'] for server in servers]}")
        say("the provider has no server")
        if psutil.pid_exists(pid):
            raise StoryError(f"the agent's process {pid} is still there")
        say(f"the agent's process {pid} is gone")
        async with await psycopg.AsyncConnection.connect(self._file.database_url) as connection:
            reserved = await (await connection.execute(_RESERVATIONS, {"instance_id": instance_id})).fetchall()
        if reserved:
            raise StoryError(f"still reserved: {reserved}")
        say("its host name, address and server id are free again")
        listed = expect(await self._api.get("/v1/instances"), 200)["instances"]
        if listed:
            raise StoryError("the instance is still listed")
        say(f"the log keeps the whole story: {events} events, status deleted")
