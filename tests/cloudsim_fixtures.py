"""Real cloudsim processes for tests, and drivers that talk to them.

`cloudsim` is shared by the tests of a module, and reset before each test. Import the fixtures by name where they are used.
"""

import json
import os
import signal
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from hydracore.cloudsim.quota import LIMIT_DEFAULT, REFILL_PER_S_DEFAULT
from hydracore.embedded.ports import free_port
from hydracore.transport import EMPTY_TRUST_STORE
from tests.forked import Forked
from tests.waiting import PATIENCE_S, until
from workers.providers.hetzner import HetznerProvider

REPOSITORY = Path(__file__).parent.parent
#: As long as a real one, so that what is tested to leak nothing of it is tested on the real size.
TOKEN = "Sim0Token" * 7 + "X"
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPmKkY8pVVjQ2vLm6sCXUb4hAX6ZBvKpiMFEgt8rXhJt ops@example"
STOP_S_MAX = 15

#: cloudsim with options that its command has not.
PROGRAM = "tests.cloudsim_program"


class CloudsimProcess:
    """`hydracore cloudsim` on a home of its own; may be killed and started again, on the same port."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.log = home.parent / f"{home.name}.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.endpoint = f"{self.url}/v1"
        self.token = TOKEN
        self._options: dict[str, Any] = {}
        self._process: Forked | None = None
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=PATIENCE_S,
            trust_env=False,
            verify=EMPTY_TRUST_STORE,
        )

    async def start(self, **options: Any) -> None:
        """Start it and wait until it answers. `options` as of `run`."""
        assert not self.is_alive, "it runs"
        self._options = options
        given = {"home": str(self.home), "port": self.port, "token": TOKEN, **options}
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        self._process = Forked(
            PROGRAM, json.dumps(given), cwd=self.home.parent, env=env, stdout=self.log, stderr=self.log
        )
        await until(self._answers)

    async def restore(self) -> None:
        """As new: running with no options, no servers, no keys, no faults, nothing held, the usual request limit."""
        if self.is_alive and self._options:
            self.terminate()
        if not self.is_alive:
            await self.start()
        limit = {"limit": LIMIT_DEFAULT, "remaining": LIMIT_DEFAULT, "refill_per_s": REFILL_PER_S_DEFAULT}
        self.call("PUT", "/_sim/rate_limit", limit)
        self.call("DELETE", "/_sim/faults")
        self.call("POST", "/_sim/release", {"all": True, "apply": False})
        for server in self.servers():
            # One whose deletion the test before has asked for goes by itself, at any moment.
            answer = self._client.post(f"/_sim/servers/{server['id']}/vanish")
            assert answer.is_success or answer.status_code == httpx.codes.NOT_FOUND, answer.text
        for key in self.call("GET", "/v1/ssh_keys?per_page=50")["ssh_keys"]:
            self.call("DELETE", f"/v1/ssh_keys/{key['id']}")

    def kill(self) -> None:
        """kill -9, and wait until it is dead."""
        self.end(signal.SIGKILL)

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        return self.end(signal.SIGTERM)

    def close(self) -> None:
        """The end of the test: nothing that it started stays."""
        if self.is_alive:
            self.call("POST", "/_sim/shutdown")
            self.terminate()
        self._client.close()
        for agent in self.agents():
            agent.kill()

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.is_alive

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """A request that must succeed; its answer."""
        answer = self._client.request(method, path, json=body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else {}

    def servers(self) -> list[dict[str, Any]]:
        return self.call("GET", "/_sim/servers")["servers"]

    def server(self, server_id: int | str) -> dict[str, Any]:
        return next(server for server in self.servers() if server["id"] == int(server_id))

    def fault(self, operation: str, fault: str, **details: Any) -> int:
        return self.call("POST", "/_sim/faults", {"operation": operation, "fault": fault, **details})["id"]

    def held(self) -> list[dict[str, Any]]:
        return self.call("GET", "/_sim/held")["held"]

    def requests(self, operation: str) -> int:
        return self.call("GET", "/_sim/requests")["requests"].get(operation, 0)

    def agents(self, server_id: int | str | None = None) -> list[psutil.Process]:
        """The agent processes of this home, or of one of its servers, as the operating system knows them."""
        root = self.home / "servers" / str(server_id or "")
        found: list[psutil.Process] = []
        for process in psutil.process_iter(["cmdline", "status"]):
            command = process.info["cmdline"] or []
            ours = "hydracore.agent" in command and Path(command[-1]).is_relative_to(root)
            if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def end(self, number: signal.Signals) -> int:
        """Send a signal that ends it; the exit code."""
        self.send(number)
        assert self._process is not None
        return self._process.wait(STOP_S_MAX)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.signal(number)

    async def freeze(self) -> None:
        """Have it stand still, until it is sent SIGCONT: connections are made, and nothing is answered."""
        assert self._process is not None
        await stop_short(self._process.pid)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.is_alive, self.log.read_text()[-2000:]
        try:
            return self._client.get("/_sim/requests").is_success
        except httpx.TransportError:
            return False


def user_data(*, control_plane_url: str = "http://127.0.0.1:9") -> str:
    """What workers send. Nobody listens on the discard port, so an agent that gets this tries for ever and lives."""
    agent = {"control_plane_url": control_plane_url, "instance_id": str(uuid4()), "attempt": 1, "enrol_token": "t" * 43}
    file = {"path": "/etc/hydracore/agent.json", "permissions": "0600", "content": json.dumps(agent)}
    command = ["systemctl", "enable", "--now", "hydracore-agent.service"]
    return "#cloud-config\n" + json.dumps({"write_files": [file], "runcmd": [command]})


def driver_for(cloudsim: CloudsimProcess, *, timeout_s: float = 5.0, token: str = TOKEN) -> HetznerProvider:
    return HetznerProvider(
        cloudsim.endpoint, token, timeout_s=timeout_s, ssh_public_key=PUBLIC_KEY, ssh_key_name="hydracore"
    )


@pytest.fixture(scope="module", name="module_cloudsim")
def module_cloudsim_fixture(tmp_path_factory: pytest.TempPathFactory) -> Generator[CloudsimProcess]:
    process = CloudsimProcess(tmp_path_factory.mktemp("cloudsim") / "home")
    yield process
    process.close()


@pytest.fixture(name="cloudsim")
async def cloudsim_fixture(module_cloudsim: CloudsimProcess) -> CloudsimProcess:
    """A running cloudsim without servers, that boots processes. A test may kill it and start it again as it likes."""
    await module_cloudsim.restore()
    return module_cloudsim


@pytest.fixture(name="driver")
async def driver_fixture(cloudsim: CloudsimProcess) -> AsyncGenerator[HetznerProvider]:
    """A driver of the shared cloudsim."""
    provider = driver_for(cloudsim)
    yield provider
    await provider.aclose()


async def stop_short(pid: int) -> None:
    """SIGSTOP, and wait until it is in force: a signal that comes before that may overtake it."""
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
