"""An agent's silence counts only while its heartbeats could be received."""

import asyncio
from uuid import UUID

import psycopg
import pytest
from structlog.testing import capture_logs

from events.ids import lane_of
from hydracore.api import heartbeat_reception
from hydracore.db.pool import open_pool
from tests.lifecycle import BOOT
from tests.waiting import until

STREAM = UUID(int=0x51)
SILENT = "SELECT silent_s(received_at) FROM heartbeat"


@pytest.fixture
async def silent_for_100_s(owner_conn: psycopg.AsyncConnection) -> None:
    beat = (
        "INSERT INTO heartbeat (lane, instance_id, received_at, boot_id, report)"
        " VALUES (%s, %s, now() - interval '100 s', %s, '{}')"
    )
    await owner_conn.execute(beat, (lane_of(STREAM), STREAM, BOOT))


async def silence(connection: psycopg.AsyncConnection) -> float:
    row = await (await connection.execute(SILENT)).fetchone()
    assert row is not None
    return row[0]


async def heard(connection: psycopg.AsyncConnection, *, since_s: int, until_s: int) -> None:
    """Heartbeats could be received from so many seconds ago until so many seconds ago."""
    await connection.execute("DELETE FROM hearing")
    statement = "INSERT INTO hearing (since, until) SELECT now() - %s * interval '1 s', now() - %s * interval '1 s'"
    await connection.execute(statement, (since_s, until_s))


@pytest.mark.usefixtures("silent_for_100_s")
async def test_silence_is_counted_only_while_heartbeats_can_be_received(owner_conn: psycopg.AsyncConnection) -> None:
    assert await silence(owner_conn) >= 100

    await heard(owner_conn, since_s=1000, until_s=5)
    assert await silence(owner_conn) >= 100

    await heard(owner_conn, since_s=30, until_s=5)
    assert 30 <= await silence(owner_conn) < 100


@pytest.mark.usefixtures("silent_for_100_s")
async def test_an_outage_of_the_api_does_not_count_as_silence_of_agents(
    owner_conn: psycopg.AsyncConnection, database_url: str
) -> None:
    await heard(owner_conn, since_s=1000, until_s=90)

    during = await silence(owner_conn)
    async with open_pool(database_url, role="hydracore_app", application="test", size=1) as pool:
        listening = asyncio.create_task(heartbeat_reception.keep_recording(pool))
        await until(lambda: _is_anew(owner_conn))
        listening.cancel()

    assert 10 <= during < 90
    assert await silence(owner_conn) < 90


@pytest.mark.usefixtures("silent_for_100_s")
async def test_recording_that_heartbeats_are_received_is_retried_after_a_database_error(
    owner_conn: psycopg.AsyncConnection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat_reception, "RECORD_INTERVAL_S", 0.02)
    await heard(owner_conn, since_s=1000, until_s=90)
    await owner_conn.execute("REVOKE INSERT ON hearing FROM hydracore_app")

    async with open_pool(database_url, role="hydracore_app", application="test", size=1) as pool:
        with capture_logs() as lines:
            listening = asyncio.create_task(heartbeat_reception.keep_recording(pool))
            await until(lambda: lines)
            await owner_conn.execute("GRANT INSERT ON hearing TO hydracore_app")
            await until(lambda: _is_anew(owner_conn))
        listening.cancel()

    assert {line["event"] for line in lines} == {"heartbeats_not_heard"}


async def _is_anew(connection: psycopg.AsyncConnection) -> bool:
    row = await (await connection.execute("SELECT since > now() - interval '60 s' FROM hearing")).fetchone()
    return row == (True,)
