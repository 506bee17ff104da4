"""A small stack of real processes: API, relays, workers and cloudsim, each of which a test may kill -9 and start again.

Timers do only what a test asks for (see `SETTINGS`).
"""

import asyncio
import itertools
import os
import signal
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import redis

from events.ids import instance_id_for
from hydracore import settings as configuration
from hydracore.auth import issue_token
from hydracore.embedded.ports import free_port
from hydracore.settings import variable_name
from hydracore.transport import EMPTY_TRUST_STORE
from tests.cloudsim_fixtures import CloudsimProcess
from tests.program import Program
from tests.records import Records
from tests.waiting import until
from workers.broker import HintSender
from workers.deps import Deps, open_deps

MASTER_KEY = b"master-key-of-the-tests-32-bytes"
JWT_SECRET = "a-secret-that-signs-the-tokens-of-the-tests"
TENANT, CUSTOMER, EMAIL = "acme", "ann", "ann.the.customer@example.com"
DISPLAY_NAME = "Ann Annason the First"

#: Times that a test waits for are short; what would come by the clock and disturb a test is put off for a week.
SETTINGS = {
    "provider_timeout_s": "3",
    "heartbeat_interval_s": "3600",
    "heartbeat_late_s": "172800",
    "heartbeat_lost_s": "604800",
    "orphan_grace_s": "0.5",
    "teardown_alarm_s": "1",
    "sweep_interval_s": "604800",
    "address_quarantine_s": "1",
    "worker_threads": "8",
}

#: Agents that report often, and are soon missed. For a stack of their own: whatever ran here before would go on reporting.
FAST_HEARTBEATS = {"heartbeat_interval_s": "0.3", "heartbeat_late_s": "1", "heartbeat_lost_s": "4"}

#: Between two looks at a part that has to work for its answer.
ASK_AGAIN_S = 0.1

#: Statuses that nothing leaves by itself.
FINAL_STATUSES = frozenset({"running", "failed", "error", "deleted"})

_FAR_FUTURE_S = 4_000_000_000
_serial = itertools.count(1)


class Stack(Records):
    """Everything but the stores, and a customer who uses it. Coroutines wait for the outside world."""

    def __init__(self, folder: Path, *, database_url: str, redis_url: str, **settings: str) -> None:
        super().__init__(database_url, CloudsimProcess(folder / "cloudsim"))
        self.folder = folder
        self.redis_url = redis_url
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        known = {
            **SETTINGS,
            "database_url": database_url,
            "redis_url": redis_url,
            "master_key": urlsafe_b64encode(MASTER_KEY).decode(),
            "jwt_secret": JWT_SECRET,
            "public_url": self.url,
            "api_port": str(port),
            "cloudsim_url": self.cloudsim.url,
            "cloudsim_token": self.cloudsim.token,
            **settings,
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HYDRACORE_")}
        self._environ = inherited | {variable_name(name): value for name, value in known.items()}
        self.api = self.program("api")
        self.relay = self.program("relay")
        self.worker = self.program("worker")
        self.token = issue_token(
            JWT_SECRET, tenant_id=TENANT, user_id=CUSTOMER, role="customer", expires_at=_FAR_FUTURE_S, email=EMAIL
        )
        self.master_key = MASTER_KEY
        #: What must be neither in the database nor in what processes print. The provider quotes the beginning of its token.
        self.secrets = (
            known["master_key"],
            JWT_SECRET,
            EMAIL,
            DISPLAY_NAME,
            self.token,
            self.cloudsim.token[:8],
            *(str(urlsplit(url).password) for url in (database_url, redis_url)),
        )
        bearer = {"Authorization": f"Bearer {self.token}"}
        self._client = httpx.Client(
            base_url=self.url, headers=bearer, timeout=10, trust_env=False, verify=EMPTY_TRUST_STORE
        )

    # Processes

    def program(self, name: str) -> Program:
        """Another process of the stack, not started yet. The caller must kill it."""
        return Program(name, environ=self._environ, log=self.folder / f"{name}-{next(_serial)}.log")

    async def start(self, *, boot: str) -> None:
        """Start what does not run. `boot`: as of cloudsim."""
        for each in (self.api, self.relay, self.worker):
            if not each.is_alive:
                each.start()
        if not self.cloudsim.is_alive:
            await self.cloudsim.start(boot=boot)
        await self.until(self._answers)
        for part in (self.relay, self.worker):
            await self.until_started(part)

    async def restore(self) -> None:
        """As new, but for what earlier tests made: everything runs, nothing is held, nothing goes wrong."""
        if not self.cloudsim.is_alive:
            await self.cloudsim.start(boot="inline")
        self.cloudsim.call("DELETE", "/_sim/faults")
        self.cloudsim.call("POST", "/_sim/release", {"all": True, "apply": False})
        # Hints to a worker that an earlier test killed would come back to its successor, seconds later.
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushdb()
        await self.start(boot="inline")
        # What a failed test has left half done must not meet the next one's faults.
        unsettled = "SELECT 1 FROM instance WHERE status <> ALL (%s)"
        await self.until(lambda: not self.rows(unsettled, list(FINAL_STATUSES)))

    def restart_worker(self, **settings: str) -> None:
        """A fresh worker, with these settings changed, in place of the one that is killed here, if it is not dead yet."""
        self.worker.kill()
        self.worker.start(**settings)

    @asynccontextmanager
    async def restarted(self, **settings: str) -> AsyncGenerator[None]:
        """Meanwhile API, relay and worker run with these settings changed. The next test starts them again."""
        parts = (self.api, self.relay, self.worker)
        for each in parts:
            each.kill()
            each.start(**settings)
        try:
            await self.start(boot="inline")
            yield
        finally:
            for each in parts:
                each.kill()

    def environ(self, **settings: str) -> dict[str, str]:
        """What the processes are given, with these settings changed."""
        return self._environ | {variable_name(name): value for name, value in settings.items()}

    @asynccontextmanager
    async def deps(self, **settings: str) -> AsyncGenerator[Deps]:
        """What a worker stands on, in this process, with these settings changed."""
        environ = self.environ(**settings)
        async with open_deps(configuration.load(environ, require=configuration.WORKER_NEEDS), environ) as opened:
            yield opened

    async def until_started(self, part: Program) -> None:
        """Wait until a relay or a worker is at work."""
        await self.until(lambda: part.has_logged(f"{part.name}_started"))

    async def until(self, condition: Callable[[], object | Awaitable[object]]) -> None:
        await until(condition, poll_s=ASK_AGAIN_S)

    def kill(self) -> None:
        for each in (self.api, self.relay, self.worker):
            each.kill()

    def freeze(self) -> None:
        """Have everything stand still: between its tests it would look for work all the time."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        for each in (self.api, self.relay, self.worker, self.cloudsim):
            if each.is_alive:
                each.send(number)

    def close(self) -> None:
        self.kill()
        self._client.close()
        self.close_records()
        self.cloudsim.close()

    def output(self) -> str:
        """What all processes have ever printed."""
        return "".join(path.read_text() for path in self.folder.rglob("*.log"))

    # The customer

    def new_key(self) -> tuple[str, UUID]:
        """An idempotency key, and the id of the instance that is asked for with it."""
        key = uuid4().hex
        return key, instance_id_for(tenant_id=TENANT, customer_id=CUSTOMER, idempotency_key=key)

    async def create(self, key: str | None = None, **fields: Any) -> UUID:
        """Ask for an instance."""
        order = {"region_id": "local", "tier_id": "starter", "user_display_name": DISPLAY_NAME, **fields}
        order["idempotency_key"] = key or uuid4().hex
        answer = await self.ask("POST", "/v1/instances", order)
        assert answer.status_code == 202, answer.text
        return UUID(answer.json()["instance_id"])

    async def running(self, **fields: Any) -> UUID:
        """A new instance that runs."""
        instance_id = await self.create(**fields)
        await self.until_status(instance_id, "running")
        return instance_id

    async def delete(self, instance_id: UUID) -> None:
        answer = await self.ask("DELETE", f"/v1/instances/{instance_id}")
        assert answer.is_success, answer.text

    async def detail(self, instance_id: UUID) -> dict[str, Any]:
        answer = await self.ask("GET", f"/v1/instances/{instance_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def until_status(self, instance_id: UUID, *wanted: str) -> None:
        """Wait for one of these statuses. Fails at once where another end is reached."""
        status = ""

        async def reached() -> bool:
            nonlocal status
            status = (await self.detail(instance_id))["status"]
            assert status in wanted or status not in FINAL_STATUSES - {"running"}, (
                f"{status}: {self.types(instance_id)}"
            )
            return status in wanted

        try:
            await self.until(reached)
        except TimeoutError:
            dead = [part.name for part in (self.api, self.relay, self.worker) if not part.is_alive]
            what = f"still {status}, {dead or 'nobody'} dead: {self.types(instance_id)}"
            raise AssertionError(f"{what}\n{self.output()[-6000:]}") from None

    async def ask(
        self, method: str, path: str, body: object = None, *, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """A request, put again while the API or its database is away: each is the same twice as once."""
        answers: list[httpx.Response] = []

        async def asked() -> bool:
            try:
                answers.append(await asyncio.to_thread(self._client.request, method, path, json=body, headers=headers))
            except httpx.TransportError:
                return False
            return answers[-1].status_code < 500

        await self.until(asked)
        return answers[-1]

    def _answers(self) -> bool:
        assert self.api.is_alive, self.api.output()[-3000:]
        try:
            return self._client.get("/health/ready").is_success
        except httpx.TransportError:
            return False

    # The workers

    def hint(self, actor: str, *instance_ids: UUID) -> None:
        """A hint to the workers; without ids, to a duty that concerns no single instance."""
        hints = HintSender(self.redis_url)
        sent = hints.send(actor, list(instance_ids)) if instance_ids else hints.send_duty(actor)
        hints.close()
        assert sent
