"""`hydracore api` as a process of its own: starts, tells what is wrong, and stops in order."""

import asyncio
import os
import signal
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

import httpx
import msgspec
import pytest

from hydracore.embedded.ports import free_port
from tests.api_server import JWT_SECRET, MASTER_KEY, bearer
from tests.waiting import until

ORDER = {"region_id": "local", "tier_id": "starter"}


def environ(database_url: str, redis_url: str, port: int, **extra: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HYDRACORE_")}
    return {
        **inherited,
        "HYDRACORE_DATABASE_URL": database_url,
        "HYDRACORE_REDIS_URL": redis_url,
        "HYDRACORE_MASTER_KEY": urlsafe_b64encode(MASTER_KEY).decode(),
        "HYDRACORE_JWT_SECRET": JWT_SECRET,
        "HYDRACORE_API_PORT": str(port),
        "HYDRACORE_CLOUDSIM_URL": "http://127.0.0.1:1",
        "HYDRACORE_CLOUDSIM_TOKEN": "the-cloudsim-token",
        **extra,
    }


async def start(env: dict[str, str]) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "hydracore", "api"]
    return await asyncio.create_subprocess_exec(
        *command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_until_it_is_told_to_stop_and_prints_no_secret(
    database_url: str, redis_url: str, stop: signal.Signals
) -> None:
    port = free_port()
    process = await start(environ(database_url, redis_url, port))
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url) as client:

        async def is_ready() -> bool:
            try:
                return (await client.get("/health/ready")).status_code == 200
            except httpx.TransportError:
                return False

        await until(is_ready)
        headers = bearer(email="ann@example.com")
        made = await client.post("/v1/instances", json=ORDER, headers=headers)
        refused = await client.get("/v1/instances", headers={"Authorization": "Bearer " + "x" * 40})
        process.send_signal(stop)
        out, err = await asyncio.wait_for(process.communicate(), 15)

    assert (made.status_code, refused.status_code) == (202, 401)
    assert process.returncode == 0
    assert out == b""
    lines = [msgspec.json.decode(line) for line in err.splitlines()]
    assert {line["region"] for line in lines if line["event"] == "region_unavailable"} >= {"fsn1"}
    secrets = [JWT_SECRET, "the-cloudsim-token", "ann@example.com", headers["Authorization"].split()[1]]
    assert all(secret.encode() not in err for secret in secrets)


async def test_requests_under_way_are_answered_before_it_stops(database_url: str, redis_url: str) -> None:
    port = free_port()
    process = await start(environ(database_url, redis_url, port))

    async def connects() -> bool:
        try:
            _, probe = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        probe.close()
        return True

    await until(connects)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = msgspec.json.encode(ORDER)
    head = f"POST /v1/instances HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    writer.write((head + f"Authorization: {bearer()['Authorization']}\r\nExpect: 100-continue\r\n\r\n").encode())
    # The request is being served once the server asks for its body.
    assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")

    process.send_signal(signal.SIGTERM)
    writer.write(body)
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()

    assert answer.startswith(b"HTTP/1.1 202")
    assert await asyncio.wait_for(process.wait(), 15) == 0
    await process.communicate()


async def test_a_wrong_catalogue_is_told_line_by_line(tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text("[providers]\n[regions]\n[tiers]\n")
    env = environ("postgresql://x@127.0.0.1:1/x", "redis://127.0.0.1:1", 0, HYDRACORE_CATALOGUE=str(catalogue))

    process = await start(env)
    _, err = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 2
    assert f"{catalogue}: presets: Field required" in err.decode().splitlines()
