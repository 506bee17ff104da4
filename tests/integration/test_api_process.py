"""`hydracore api` as a process of its own: it starts, reports what is wrong, and stops in order."""

import asyncio
import os
import signal
import sys
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import psycopg
import pytest

from events.keys import Keyring
from events.master_keys import MasterKeys
from hydracore.db.pool import open_pool
from hydracore.embedded.ports import free_port
from hydracore.http_protocol import HEAD_BYTES_MAX
from hydracore.transport import EMPTY_TRUST_STORE
from tests.api_server import JWT_SECRET, MASTER_KEY, bearer
from tests.command import Command, run_forked
from tests.waiting import PATIENCE_S, until

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


@asynccontextmanager
async def started(env: dict[str, str]) -> AsyncGenerator[asyncio.subprocess.Process]:
    """The API as its command starts it. It ends with the test, whatever comes of it."""
    command = [sys.executable, "-m", "hydracore", "api"]
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def asking(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, verify=EMPTY_TRUST_STORE)


async def is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def test_the_api_serves_until_sigterm_and_logs_no_secret(database_url: str, redis_url: str) -> None:
    port = free_port()
    async with started(environ(database_url, redis_url, port)) as process, asking(port) as client:
        await until(lambda: is_ready(client))
        headers = bearer(email="ann@example.com")
        made = await client.post("/v1/instances", json=ORDER, headers=headers)
        refused = await client.get("/v1/instances", headers={"Authorization": "Bearer " + "x" * 40})
        too_long = await client.get("/health/live", headers={"X-Padding": "x" * HEAD_BYTES_MAX})
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()

    assert (made.status_code, refused.status_code, too_long.status_code) == (202, 401, 431)
    assert process.returncode == 0
    assert out == b""
    lines = [msgspec.json.decode(line) for line in err.splitlines()]
    assert {line["region"] for line in lines if line["event"] == "region_unavailable"} >= {"fsn1"}
    assert [line.get("port") for line in lines if line["event"] in {"api_started", "stopped"}] == [port, None]
    secrets = [JWT_SECRET, "the-cloudsim-token", "ann@example.com", headers["Authorization"].split()[1]]
    assert all(secret.encode() not in err for secret in secrets)


@pytest.mark.parametrize("part", ["api", "worker"])
async def test_the_api_and_the_worker_refuse_to_start_with_a_master_key_that_does_not_fit(
    database_url: str, redis_url: str, part: str
) -> None:
    async with open_pool(database_url, role="hydracore_app", application="test", size=1) as pool:
        keyring = Keyring(pool, master_keys=MasterKeys(bytes(32)))
        await keyring.seal("ann@example.com", tenant_id="acme", customer_id="ann", field="customer_email")
    env = environ(database_url, redis_url, free_port(), HYDRACORE_PUBLIC_URL="http://127.0.0.1:1")

    refused = await asyncio.to_thread(run_forked, part, env=env)

    assert refused.status == 2
    assert "HYDRACORE_MASTER_KEY does not fit this database" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr


async def test_a_listen_host_that_cannot_be_resolved_is_reported_by_name(database_url: str, redis_url: str) -> None:
    env = environ(database_url, redis_url, free_port(), HYDRACORE_API_HOST="127.0.0.1:80")

    refused = await asyncio.to_thread(run_forked, "api", env=env)

    (*_, line) = map(msgspec.json.decode, refused.stderr.splitlines())
    assert (refused.status, line["event"], line["host"]) == (3, "api_host_unknown", "127.0.0.1:80")
    assert line["hint"].endswith(": check HYDRACORE_API_HOST")


async def test_only_log_lines_about_a_request_carry_its_request_id(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    env = environ(database_url, "redis://127.0.0.1:1/0", port := free_port())
    with Command.started("api", env=env) as api:
        async with asking(port) as client:
            await until(lambda: is_ready(client))
            await owner_conn.execute("ALTER TABLE instance RENAME TO elsewhere")

            answers = await asyncio.gather(
                *(
                    client.get("/v1/instances", headers={**bearer(user=name), "X-Request-Id": f"of-{name}"})
                    for name in ("ann", "bob")
                )
            )
            # This line comes by itself, whether or not a request has started what it is about.
            await until(lambda: any("rate_limits_suspended" in line for line in api.stderr_lines()))
            api.signal(signal.SIGTERM)
            ended = await api.ended()

    assert {(answer.status_code, answer.headers["x-request-id"]) for answer in answers} == {
        (500, "of-ann"),
        (500, "of-bob"),
    }
    lines = [msgspec.json.decode(line) for line in ended.stderr.splitlines()]
    told = [(line["event"], line["request_id"]) for line in lines if "request_id" in line]
    assert sorted(told) == [("request_failed", "of-ann"), ("request_failed", "of-bob")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
async def test_requests_in_progress_are_answered_before_the_api_stops(
    database_url: str, redis_url: str, number: signal.Signals
) -> None:
    port, for_agents = free_port(), free_port()
    env = environ(database_url, redis_url, port, HYDRACORE_API_PORT_FOR_AGENTS=str(for_agents))
    with Command.started("api", env=env) as api:
        async with asking(port) as client, asking(for_agents) as agent:
            await until(lambda: is_ready(client))
            await until(lambda: is_ready(agent))
        idle, agents_end = await asyncio.open_connection("127.0.0.1", for_agents)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = msgspec.json.encode(ORDER)
        head = f"POST /v1/instances HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        writer.write((head + f"Authorization: {bearer()['Authorization']}\r\nExpect: 100-continue\r\n\r\n").encode())
        # The request is being served once the server asks for its body.
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")

        api.signal(number)
        # Neither port waits for the other: a supervisor may not wait as long as both need one by one.
        assert await idle.read() == b""
        agents_end.close()
        writer.write(body)
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        ended = await api.ended()

    assert answer.startswith(b"HTTP/1.1 202")
    assert ended.status == 0


async def test_an_invalid_catalogue_is_reported_with_its_file_and_field(tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text("[providers]\n[regions]\n[tiers]\n")
    env = environ("postgresql://x@127.0.0.1:1/x", "redis://127.0.0.1:1", 0, HYDRACORE_CATALOGUE=str(catalogue))

    refused = await asyncio.to_thread(run_forked, "api", env=env)

    assert refused.status == 2
    assert f"{catalogue}: presets: Field required" in refused.stderr.splitlines()
