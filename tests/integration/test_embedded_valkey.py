"""The embedded Valkey: a password, loopback only, nothing on disk."""

from pathlib import Path

import psutil
import pytest
import redis.asyncio
import redis.exceptions

from hydracore.embedded.leftovers import MARK_VARIABLE
from hydracore.embedded.ports import free_port
from hydracore.embedded.supervisor import Supervisor
from hydracore.embedded.valkey import Valkey
from tests.waiting import until

#: A directory name with characters that need quoting.
FOLDER = 'a "b"\\c\nd'


@pytest.fixture
def valkey(tmp_path: Path) -> Valkey:
    return Valkey(base=tmp_path / FOLDER, password="valkey-password", port=free_port())


async def test_valkey_serves_only_clients_with_the_password(valkey: Valkey, tmp_path: Path) -> None:
    async with Supervisor.running(home=tmp_path, logs=tmp_path) as supervisor:
        await supervisor.start(valkey.part())
        async with redis.asyncio.from_url(valkey.url(3)) as client:
            await client.set("key", "value")
            stored = await client.get("key")
        async with redis.asyncio.from_url(f"redis://127.0.0.1:{valkey.port}/0") as stranger:
            with pytest.raises(redis.exceptions.AuthenticationError):
                await stranger.get("key")

    assert stored == b"value"
    assert not await valkey.answers()


async def test_the_valkey_password_is_in_no_command_line_and_no_file_that_others_can_read(
    valkey: Valkey, tmp_path: Path
) -> None:
    async with Supervisor.running(home=tmp_path, logs=tmp_path) as supervisor:
        await supervisor.start(valkey.part())
        (pid,) = supervisor.pids()["valkey"]
        command = psutil.Process(pid).cmdline()
        listening = {
            connection.laddr.ip for connection in psutil.Process(pid).net_connections() if connection.status == "LISTEN"
        }

    assert "valkey-password" not in " ".join(command)
    assert (tmp_path / FOLDER / "valkey.conf").stat().st_mode & 0o077 == 0
    assert listening == {"127.0.0.1"}


async def test_valkey_keeps_the_environment_mark_that_identifies_it_after_its_supervisor_is_killed(
    valkey: Valkey, tmp_path: Path
) -> None:
    async with Supervisor.running(home=tmp_path, logs=tmp_path) as supervisor:
        await supervisor.start(valkey.part())
        (pid,) = supervisor.pids()["valkey"]
        environ = psutil.Process(pid).environ()

    # A program that sets its process title overwrites its environment with it.
    assert MARK_VARIABLE in environ


async def test_a_killed_valkey_comes_back_empty_on_the_same_port(valkey: Valkey, tmp_path: Path) -> None:
    async with Supervisor.running(home=tmp_path, logs=tmp_path) as supervisor:
        await supervisor.start(valkey.part())
        async with redis.asyncio.from_url(valkey.url()) as client:
            await client.set("key", "value")
        (killed,) = supervisor.pids()["valkey"]
        psutil.Process(killed).kill()
        await until(lambda: supervisor.pids()["valkey"] not in ([], [killed]))
        await until(valkey.answers)
        async with redis.asyncio.from_url(valkey.url()) as client:
            kept = await client.get("key")

    assert kept is None
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["valkey.conf"]
