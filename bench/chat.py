"""What the API adds to a chat with the agent, and what many streams at once through one API process cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, NamedTuple

import httpx
import psutil

from bench.result import Limit
from bench.services import Services
from hydracore.agent.chat_api import EVENT_STREAM
from hydracore.agent.credentials import load_secrets
from hydracore.agent.state import StateDir
from hydracore.cli.development import DevFile, development
from hydracore.cloudsim.disk import DISKS
from hydracore.embedded.home import Home
from hydracore.embedded.ports import free_port
from hydracore.settings import variable_name

WARM_UP: Final = 20
CHATS: Final = 300
STREAMS: Final = 150
TOGETHER: Final = 200
WAIT_S_MAX: Final = 60.0

#: What the API may add to a chat, in milliseconds.
OVERHEAD_MS_MAX: Final = 10.0
#: Not targets: beyond these something would be wrong.
TOGETHER_S_MAX: Final = 30.0
TOGETHER_MIB_MAX: Final = 256.0

WHOLE: Final = "Hello"
COUNTING: Final = "Count to 50"

Ask = Callable[[], Awaitable[float]]


class _Timed(NamedTuple):
    """How long each pair of calls took, direct and through the API, in milliseconds."""

    pairs: list[tuple[float, float]]

    def overhead(self, what: str, percent: int) -> Limit:
        """What the API adds, at a percentile of both ways.

        A low one shows calls that other programs have not disturbed.
        """
        direct_ms, proxied_ms = (quantiles(times, n=100)[percent - 1] for times in zip(*self.pairs, strict=True))
        name = f"{what}, p{percent}: {proxied_ms:.1f} ms through the API - {direct_ms:.1f} ms directly"
        return Limit(name=name, value=proxied_ms - direct_ms, target=OVERHEAD_MS_MAX, unit="ms")


class _Way(NamedTuple):
    """One of the two ways to the same agent: its client, and the path of a chat."""

    client: httpx.AsyncClient
    path: str

    async def whole_ms(self) -> float:
        began_s = time.perf_counter()
        answer = await self.client.post(self.path, json={"message": WHOLE})
        took_ms = (time.perf_counter() - began_s) * 1000
        assert answer.status_code == httpx.codes.OK, answer.text
        return took_ms

    async def first_token_ms(self) -> float:
        """The time to the first token of a stream, which is then read to its end."""
        began_s = time.perf_counter()
        async with self.stream(WHOLE) as chunks:
            first = await anext(chunks)
            took_ms = (time.perf_counter() - began_s) * 1000
            assert first.startswith(b"event: token\n")
            async for _ in chunks:
                pass
        return took_ms

    @asynccontextmanager
    async def stream(self, message: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        headers = {"Accept": EVENT_STREAM}
        async with self.client.stream("POST", self.path, json={"message": message}, headers=headers) as answer:
            assert answer.status_code == httpx.codes.OK, await answer.aread()
            yield answer.aiter_raw()


async def measure(services: Services) -> list[Limit]:
    """Call one agent, whose scripted model answers at once, in turn: directly, through the API, directly, ..."""
    home = Home(services.home.path.parent / "chat")
    environ = {
        "database_url": await services.fresh_database("chat", migrated=False),
        "redis_url": services.valkey.url(2),
        "log_level": "warning",
        # Requests are counted as always, but the limit is never reached, although all are one user's.
        "rate_limit_per_minute": "10000000",
    }
    settings = {variable_name(name): value for name, value in environ.items()}
    async with development(home, port=free_port(), workers=1, environ=settings) as (_, file):
        async with _both_ways(file, home.cloudsim / DISKS) as (direct, proxied):
            (api,) = file.pids["api"]
            before_ms = _cpu_ms(api)
            chats = await _in_turn(direct.whole_ms, proxied.whole_ms, CHATS)
            cpu_ms = (_cpu_ms(api) - before_ms) / (WARM_UP + CHATS)
            tokens = await _in_turn(direct.first_token_ms, proxied.first_token_ms, STREAMS)
            assert file.modelsim_url is not None
            failed, took_s = await _together(proxied, file.modelsim_url)
        return [
            chats.overhead("chat", 50),
            chats.overhead("chat", 10),
            Limit(name="chat: CPU time of the API, each", value=cpu_ms, target=OVERHEAD_MS_MAX, unit="ms"),
            tokens.overhead("first token of a stream", 50),
            tokens.overhead("first token of a stream", 10),
            Limit(name=f"{TOGETHER} streams at once through one API process: failed", value=failed, target=0, unit=""),
            Limit(
                name="the same: from the first request to the last end", value=took_s, target=TOGETHER_S_MAX, unit="s"
            ),
            Limit(name="the same: peak memory of the API", value=_peak_mib(api), target=TOGETHER_MIB_MAX, unit="MiB"),
        ]


async def _in_turn(direct: Ask, proxied: Ask, rounds: int) -> _Timed:
    for _ in range(WARM_UP):
        await direct()
        await proxied()
    return _Timed([(await direct(), await proxied()) for _ in range(rounds)])


async def _together(proxied: _Way, modelsim_url: str) -> tuple[int, float]:
    """Hold streams until all are open. Returns how many have failed, and the seconds that all took."""
    opened: asyncio.Queue[None] = asyncio.Queue()
    async with httpx.AsyncClient(base_url=modelsim_url, trust_env=False) as models:
        held = {"kind": "hold", "contains": COUNTING, "after_tokens": 3, "times": TOGETHER}
        (await models.post("/_sim/faults", json=held)).raise_for_status()

        async def read_one() -> bool:
            rest = b""
            async with proxied.stream(COUNTING) as chunks:
                rest = await anext(chunks)
                opened.put_nowait(None)
                async for chunk in chunks:
                    rest = (rest + chunk)[-1000:]
            return b"\nevent: done\n" in rest

        async def release() -> None:
            async with asyncio.timeout(WAIT_S_MAX):
                for _ in range(TOGETHER):
                    await opened.get()
                (await models.post("/_sim/release")).raise_for_status()

        began_s = time.perf_counter()
        releasing = asyncio.create_task(release())
        ends = await asyncio.gather(*(read_one() for _ in range(TOGETHER)), return_exceptions=True)
        took_s = time.perf_counter() - began_s
        await releasing
    return sum(end is not True for end in ends), took_s


@asynccontextmanager
async def _both_ways(file: DevFile, disks: Path) -> AsyncGenerator[tuple[_Way, _Way]]:
    """The two ways to a new instance's agent: directly, with its control token, and through the API."""
    async with AsyncExitStack() as stack:

        async def client(base_url: str, token: str) -> httpx.AsyncClient:
            return await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=base_url,
                    headers={"Authorization": f"Bearer {token}"},
                    trust_env=False,
                    timeout=WAIT_S_MAX,
                    limits=httpx.Limits(max_connections=None),
                )
            )

        api = await client(file.url, file.customer.token)
        ordered = await api.post("/v1/instances", json={"region_id": "local", "tier_id": "starter"})
        instance = f"/v1/instances/{ordered.json()['instance_id']}"
        await _until_running(api, instance)
        provider = await client(file.cloudsim_url, file.cloudsim_token)
        (server,) = (await provider.get("/_sim/servers")).json()["servers"]
        stored = load_secrets(StateDir(disks / str(server["id"])))
        assert stored is not None
        listen = stored.secrets.listen
        agent = await client(f"http://{listen.host}:{listen.port}", stored.secrets.control_token)
        yield _Way(agent, "/api/chat"), _Way(api, f"{instance}/chat")


async def _until_running(api: httpx.AsyncClient, instance: str) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while (await api.get(instance)).json()["status"] != "running":  # noqa: ASYNC110 - another process sets no Event
            await asyncio.sleep(0.1)


def _cpu_ms(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return (used.user + used.system) * 1000


def _peak_mib(pid: int) -> float:
    """The most memory that a process ever had, in MiB (VmHWM of proc(5), which is in KiB)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields: dict[str, Any] = dict(line.split(":", 1) for line in lines)
    return int(fields["VmHWM"].split()[0]) / 1024
