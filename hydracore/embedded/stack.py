"""Everything of one installation on one machine: stores, simulators, API, relay and workers, in the right order."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final, Self

import httpx

from hydracore import catalogue as catalogues
from hydracore import settings as configuration
from hydracore.embedded import agents, stores
from hydracore.embedded.errors import PartFailed, PortTaken
from hydracore.embedded.home import Home
from hydracore.embedded.managed_settings import MANAGED, ManagedSettings
from hydracore.embedded.part import Part, Ready
from hydracore.embedded.ports import LOOPBACK, Ports, is_free, listens
from hydracore.embedded.postgres import Postgres
from hydracore.embedded.supervisor import Supervisor
from hydracore.embedded.valkey import Valkey
from hydracore.transport import EMPTY_TRUST_STORE
from hydracore.waiting import run_concurrently

#: Where `-m hydracore` is found, installed or not.
PACKAGE_ROOT: Final = Path(configuration.__file__).parent.parent

#: The timeout of one request that checks whether a part serves.
PROBE_S_MAX: Final = 2.0
#: Relay and workers serve no requests that could show whether they are ready. With
#: unusable settings they end within this time.
READY_AFTER_S: Final = 1.5
#: How long the steps of an orderly stop may take; together they stay below 13 s. The
#: API gives requests under way 5 s, and then answers those that still wait.
CONTROL_PLANE_GRACE_S: Final = 6.5
AGENTS_GRACE_S: Final = 3.0
SIMULATORS_GRACE_S: Final = 1.0
STORES_GRACE_S: Final = 2.0


class Stack:
    """The parts of `home`, with all addresses known before the first one starts."""

    def __init__(
        self, home: Home, supervisor: Supervisor, *, port: int | None, workers: int, environ: Mapping[str, str]
    ) -> None:
        """Raises `PortTaken`; `SettingsError` and `CatalogueError` where `environ` sets what no part could work with."""
        assert workers > 0
        if port is not None and not is_free(port):
            raise PortTaken(LOOPBACK, port)
        self.home = home
        self.supervisor = supervisor
        self.secrets = home.secrets()
        self._ports = Ports(home.ports_file)
        self._port = self._ports.claim("api") if port is None else port
        self.url = f"http://{LOOPBACK}:{self._port}"
        #: Agents call this port, not `port`, which may be another at the next start.
        self._port_for_agents = self._ports.claim_for_agents()
        self._cloudsim_port = self._ports.claim("cloudsim")
        self.cloudsim_url = f"http://{LOOPBACK}:{self._cloudsim_port}"
        #: The URL of the scripted models; None where the environment names real ones.
        self.modelsim_url: str | None = None
        self._modelsim_port = 0
        #: The directory of the embedded PostgreSQL, inside the home or outside of it;
        #: None where the user's database is used.
        self.data: Path | None = None
        self._workers = workers
        self._stores: list[Part] = []
        self._data_lock: AbstractContextManager[None] = nullcontext()
        self._http = httpx.AsyncClient(verify=EMPTY_TRUST_STORE, trust_env=False)
        self._settings = ManagedSettings(environ)
        self._choose_settings()
        needs = (*configuration.API_NEEDS, *configuration.WORKER_NEEDS)
        everything = self._settings.environ_with(*MANAGED)
        self.settings = configuration.load(everything, require=needs)
        catalogues.load(self.settings.catalogue, everything)

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        home: Home,
        *,
        port: int | None,
        workers: int,
        environ: Mapping[str, str],
        on_change: Callable[[], None],
        on_failure: Callable[[str], None] | None = None,
    ) -> AsyncGenerator[Self]:
        """The stack, ready to serve; all of it is stopped at the end, agents included. Call it with the home locked.

        `port`: that of the API; None has the home draw and keep one, as for its other parts.

        Raises `HomeInUse`, `PortTaken`, `PartFailed`, `StoresRefused`, `SettingsError` and `CatalogueError`.
        """
        async with (
            # First: a leftover of this home may hold its ports until then.
            Supervisor.running(
                home=home.path, logs=home.logs, on_change=on_change, on_failure=on_failure
            ) as supervisor,
            AsyncExitStack() as until_stopped,
        ):
            stack = cls(home, supervisor, port=port, workers=workers, environ=environ)
            try:
                await stack._start(until_stopped)
            except PartFailed as failed:
                await until_stopped.aclose()
                taken = stack._ports.taken_since()
                if not taken and is_free(stack._port):
                    raise
                lost = (taken or [stack._port])[0]
                # Once more: another home may have drawn the same port at the same moment.
                stack = cls(home, supervisor, port=port, workers=workers, environ=environ)
                supervisor.report_failure(str(failed))
                supervisor.report_failure(f"another program has taken port {lost} meanwhile: starting again")
                await stack._start(until_stopped)
            yield stack

    def managed_settings(self) -> dict[str, str]:
        """The managed settings by environment variable. An operator's commands need them to work on the same stores."""
        return self._settings.variables(*MANAGED)

    def _choose_settings(self) -> None:
        """Choose the managed settings: those of the environment that it may set, otherwise the home's.

        Adds an embedded store to the parts for each store that the environment does not name.
        """
        values = self._settings.values
        defaults = {
            "master_key": self.secrets.master_key,
            "jwt_secret": self.secrets.jwt_secret,
            "seal_key": self.secrets.seal_key,
            "seal_file": str(self.home.seal_file),
            "erasure_file": str(self.home.erasure_file),
        }
        ours = {
            "public_url": f"http://{LOOPBACK}:{self._port_for_agents}",
            "api_host": LOOPBACK,
            "api_port": str(self._port),
            "api_port_for_agents": str(self._port_for_agents),
            "cloudsim_url": self.cloudsim_url,
            "cloudsim_token": self.secrets.cloudsim_token,
        }
        # Those of the environment take the place of defaults, but not of ours.
        values |= defaults | values | ours
        if "database_url" not in values:
            postgres = Postgres(
                base=self.home.postgres,
                data_id=self.secrets.home_id,
                password=self.secrets.database_password,
                port=self._ports.claim("postgres"),
            )
            values["database_url"] = postgres.url()
            self.data = postgres.base
            self._data_lock = postgres.lock()
            self._stores.append(postgres.part())
        if "redis_url" not in values:
            valkey = Valkey(
                base=self.home.valkey, password=self.secrets.redis_password, port=self._ports.claim("valkey")
            )
            values["redis_url"] = valkey.url()
            self._stores.append(valkey.part())
        if "model_base_url" not in values:
            self._modelsim_port = self._ports.claim("modelsim")
            self.modelsim_url = f"http://{LOOPBACK}:{self._modelsim_port}"
            values["model_base_url"] = f"{self.modelsim_url}/v1"

    async def _start(self, until_stopped: AsyncExitStack) -> None:
        """Start everything in order. What is to be undone at the end goes to `until_stopped` before it is done."""
        await until_stopped.enter_async_context(self._http)
        until_stopped.enter_context(self._data_lock)
        until_stopped.push_async_callback(self._stop)
        simulators = [self._cloudsim()] if self.modelsim_url is None else [self._cloudsim(), self._modelsim()]
        await run_concurrently(*(self.supervisor.start(part) for part in simulators), self._start_control_plane())

    async def _start_control_plane(self) -> None:
        await run_concurrently(*(self.supervisor.start(store) for store in self._stores))
        await stores.check_and_migrate(self.settings)
        await run_concurrently(*(self.supervisor.start(part) for part in self._control_plane()))

    async def _stop(self) -> None:
        """Stop the control plane, which orders servers, then agents and simulators, then the stores.

        No failure skips a step.
        """
        control_plane = [part.name for part in self._control_plane()]
        async with AsyncExitStack() as last_first:
            last_first.push_async_callback(self.supervisor.stop, grace_s=STORES_GRACE_S)
            last_first.push_async_callback(asyncio.to_thread, agents.end_below, self.home.cloudsim)
            last_first.push_async_callback(self.supervisor.stop, ["cloudsim", "modelsim"], grace_s=SIMULATORS_GRACE_S)
            last_first.push_async_callback(self._shut_down_cloudsim)
            last_first.push_async_callback(self.supervisor.stop, control_plane, grace_s=CONTROL_PLANE_GRACE_S)

    async def _shut_down_cloudsim(self) -> None:
        """Have cloudsim stop its agents. `_stop` ends those that are left where cloudsim is dead or does not answer."""
        with suppress(httpx.HTTPError):
            await self._http.post(
                f"{self.cloudsim_url}/_sim/shutdown", headers=self._cloudsim_headers(), timeout=AGENTS_GRACE_S
            )

    def _control_plane(self) -> list[Part]:
        """API, relay and workers, as production runs them too."""
        stores = ("database_url", "redis_url")
        common = (
            *stores,
            "master_key",
            "master_keys_former",
            "public_url",
            "catalogue",
            "cloudsim_url",
            "cloudsim_token",
        )
        # Only the API hands agents their secrets.
        api = (
            *common,
            "erasure_file",
            "jwt_secret",
            "api_host",
            "api_port",
            "api_port_for_agents",
            "model_base_url",
            "model_api_key",
            "telegram_base_url",
        )
        names = [f"worker-{number}" for number in range(1, self._workers + 1)]
        return [
            self._part("api", "api", api, ready=self._api_is_ready),
            # The relay decrypts nothing, derives no tokens and calls no provider.
            self._part("relay", "relay", (*stores, "seal_key", "seal_file")),
            *(self._part(name, "worker", common) for name in names),
        ]

    def _cloudsim(self) -> Part:
        """The provider. Agents that it boots are not trusted: of all settings, it is given its own token only."""
        token = {configuration.variable_name("cloudsim_token"): self.secrets.cloudsim_token}
        options = ("--home", str(self.home.cloudsim), "--port", str(self._cloudsim_port))
        return self._simulator("cloudsim", options, token, ready=self._cloudsim_is_ready)

    def _modelsim(self) -> Part:
        """The scripted models. The user may put a script.json into their directory."""
        self.home.modelsim.mkdir(exist_ok=True)
        options = ("--home", str(self.home.modelsim), "--port", str(self._modelsim_port), "--slow-counting")
        return self._simulator("modelsim", options, {}, ready=self._modelsim_is_ready)

    def _simulator(self, name: str, options: tuple[str, ...], settings: dict[str, str], *, ready: Ready) -> Part:
        return Part(
            name=name,
            kind=name,
            command=(sys.executable, "-m", "hydracore", name, "--host", LOOPBACK, *options),
            environ={**self._settings.environ_without_settings(), **settings},
            cwd=str(PACKAGE_ROOT),
            ready=ready,
        )

    def _part(self, name: str, command: str, needs: tuple[str, ...], *, ready: Ready | None = None) -> Part:
        return Part(
            name=name,
            kind=command,
            command=(sys.executable, "-m", "hydracore", command),
            environ=self._settings.environ_with(*needs),
            cwd=str(PACKAGE_ROOT),
            ready=ready,
            ready_after_s=READY_AFTER_S,
        )

    async def _api_is_ready(self) -> bool:
        return self._listens("api", self._port) and await self._answers(f"{self.url}/health/ready", {})

    async def _cloudsim_is_ready(self) -> bool:
        return await self._answers(f"{self.cloudsim_url}/v1/servers", self._cloudsim_headers())

    async def _modelsim_is_ready(self) -> bool:
        listens_there = self._listens("modelsim", self._modelsim_port)
        return listens_there and await self._answers(f"{self.modelsim_url}/v1/models", {})

    def _listens(self, kind: str, port: int) -> bool:
        """Whether it is our part that listens. Another home's would answer just the same, where it needs no secret."""
        return any(listens(pid, port) for pid in self.supervisor.pids().get(kind, []))

    async def _answers(self, url: str, headers: dict[str, str]) -> bool:
        try:
            answer = await self._http.get(url, headers=headers, timeout=PROBE_S_MAX)
        except httpx.HTTPError:
            return False
        return answer.is_success

    def _cloudsim_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secrets.cloudsim_token}"}
