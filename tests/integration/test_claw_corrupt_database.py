"""A `chats.sqlite` with a damaged page needs an operator: the agent ends, instead of trying again for ever."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from hydracore.agent import sqlite_file
from hydracore.agent.agent import Agent
from hydracore.agent.errors import RuntimeFailed, StateDamaged
from hydracore.agent.expressclaw.database import Database
from hydracore.agent.expressclaw.runtime import ExpressClaw
from hydracore.agent.expressclaw.store import STORE_FILE, Store
from hydracore.agent.runtime import RuntimeConfig
from hydracore.clock import now_ms
from tests.agent_process import AgentProcess
from tests.claw_fixtures import agent_fixture, control_plane_fixture, document, modelsim_fixture
from tests.fake_control_plane import FakeControlPlane
from tests.modelsim_fixtures import ModelSim
from tests.sqlite_faults import refusing_statements

__all__ = ["agent_fixture", "control_plane_fixture", "modelsim_fixture"]


def damage(path: Path, name: str) -> bytes:
    """Spoil the first page of a table or an index. Returns the whole file."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * 200)
    return path.read_bytes()


async def test_an_agent_does_not_start_with_a_damaged_page_in_its_chat_database(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    agent.start()
    await control_plane.until_healthy()
    agent.signal(signal.SIGTERM)
    await agent.exit_code()
    path = agent.state / STORE_FILE
    damaged = damage(path, "entry")
    control_plane.calls.clear()

    agent.start()

    assert await agent.exit_code() == 4
    assert STORE_FILE in agent.output()
    assert path.read_bytes() == damaged
    assert control_plane.calls == []


@pytest.fixture(name="unchecked")
def unchecked_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is small enough to be checked completely when it is opened."""
    monkeypatch.setattr(sqlite_file, "CHECKED_BYTES_MAX", 0)


async def test_a_damaged_page_read_later_raises_state_damaged_and_a_violated_constraint_does_not(
    tmp_path: Path, unchecked: None
) -> None:
    path = tmp_path / STORE_FILE
    Database(path, new_id=uuid4).close()
    damage(path, "entry")

    with closing(Database(path, new_id=uuid4)) as database:
        with pytest.raises(StateDamaged) as damaged:
            await database.run(lambda db: db.execute("SELECT model FROM entry").fetchall())
        with pytest.raises(sqlite3.IntegrityError):
            await database.run(lambda db: db.execute("INSERT INTO ledger (only, ledger_id) VALUES (2, 'x')"))
        # The other tables can be read.
        assert await database.run(lambda db: db.execute("SELECT count(*) FROM spend").fetchone()) == (0,)

    assert damaged.value.path == path


@pytest.mark.parametrize("index", ["turn_open", "notice_integration"])
async def test_damage_that_the_runtime_reads_ends_it_as_damaged_and_not_as_a_retryable_failure(
    modelsim: ModelSim, tmp_path: Path, unchecked: None, index: str
) -> None:
    path = tmp_path / STORE_FILE
    Database(path, new_id=uuid4).close()
    damage(path, index)
    settings = document(modelsim)
    settings["platform"]["integrations"] = [{"type": "webhook", "id": "w", "url": "https://127.0.0.1:1/"}]
    store = Store(path, now_ms=now_ms, new_id=uuid4)
    runtime = ExpressClaw(RuntimeConfig(type="expressclaw", version=1, settings=settings), store=store)

    with pytest.raises((StateDamaged, ExceptionGroup)) as ended:
        await runtime.start()
        await runtime.wait_until_stopped()

    await runtime.stop()
    store.close()
    damaged = ended.value
    assert isinstance(damaged, StateDamaged) or damaged.subgroup(StateDamaged) is not None


@pytest.mark.parametrize("index", ["turn_open", "entry_batch"])
async def test_damage_that_a_running_agent_reads_ends_the_agent_as_damaged(
    control_plane: FakeControlPlane, tmp_path: Path, unchecked: None, index: str
) -> None:
    agent = AgentProcess(tmp_path)
    agent.state.mkdir(parents=True)
    path = agent.state / STORE_FILE
    Database(path, new_id=uuid4).close()
    damage(path, index)
    agent.write_boot_file(control_plane.boot_file())

    with pytest.raises(StateDamaged) as damaged:
        await Agent(agent.root).run()

    assert damaged.value.path == path
    assert len(control_plane.boots) == 1


async def test_a_start_that_a_disk_error_prevents_is_a_retryable_failure(modelsim: ModelSim, tmp_path: Path) -> None:
    path = tmp_path / STORE_FILE
    store = Store(path, now_ms=now_ms, new_id=uuid4)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO conversation (id, created_ms, updated_ms) VALUES ('c', 1, 1)")
        db.execute(
            "INSERT INTO turn (conversation_id, state, channel, request_digest) VALUES ('c', 'open', 'api', 'd')"
        )
    runtime = ExpressClaw(RuntimeConfig(type="expressclaw", version=1, settings=document(modelsim)), store=store)

    with refusing_statements(path, "UPDATE ON turn"), pytest.raises(RuntimeFailed, match="cannot be read"):
        await runtime.start()
    await runtime.start()

    await runtime.stop()
    store.close()
