"""Which configuration an agent starts with: the one in its secrets, or the one that it had before."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from hydracore.agent import messages as m
from hydracore.agent.agent import built_in_runtimes
from hydracore.agent.configuration import Configuration
from hydracore.agent.control_plane import ControlPlane
from hydracore.agent.expressclaw.store import Store
from hydracore.agent.state import StateDir
from hydracore.agent.supervisor import Supervisor
from hydracore.clock import now_ms

GOOD = {"agent_name": "Ada"}
WRONG = {"model_policy": {"temperature": "hot"}}


@pytest.fixture
def store(tmp_path: Path) -> Generator[Store]:
    store = Store(tmp_path / "chats.sqlite", now_ms=now_ms, new_id=uuid4)
    yield store
    store.close()


class Start:
    """One start of an agent, as far as its configuration goes."""

    def __init__(
        self, root: Path, store: Store, *, version: int, runtime: dict[str, Any], key_id: str = "of-the-key"
    ) -> None:
        self.told: list[str] = []
        supervisor = Supervisor(runtimes=built_in_runtimes(store), report=self._report, monotonic=time.monotonic)
        self.configuration = Configuration(
            state=StateDir(root),
            boot_id=uuid4(),
            control_plane=ControlPlane("http://127.0.0.1:1"),
            configure=supervisor.configure,
            report=self._report,
        )
        secrets = m.Secrets(
            key_id=key_id,
            agent_key="key",
            control_token="token",
            listen=m.Listen("127.0.0.1", 1),
            heartbeat_interval_s=1,
            config_version=version,
            runtime=runtime,
        )
        self.configuration.start(secrets)
        self.wanted = supervisor.wanted_config.version
        self.settings = supervisor.wanted_config.settings
        assert self.configuration.version == self.wanted

    def _report(self, _level: str, message: str) -> None:
        self.told.append(message)


def test_an_agent_starts_with_the_newest_valid_configuration(tmp_path: Path, store: Store) -> None:
    first = Start(tmp_path, store, version=3, runtime=GOOD)
    older = Start(tmp_path, store, version=2, runtime=GOOD)
    wrong = Start(tmp_path, store, version=4, runtime=WRONG)
    newer = Start(tmp_path, store, version=5, runtime=GOOD)

    assert [start.wanted for start in (first, older, wrong, newer)] == [3, 3, 3, 5]
    assert first.told == older.told == newer.told == []
    (told,) = wrong.told
    assert told.startswith("Configuration 4 is not used: ")


def test_an_invalid_first_configuration_is_used_so_that_its_error_is_reported(tmp_path: Path, store: Store) -> None:
    first = Start(tmp_path, store, version=3, runtime=WRONG)
    corrected = Start(tmp_path, store, version=4, runtime=GOOD)

    assert (first.wanted, corrected.wanted) == (3, 4)


def test_a_restart_keeps_the_adopted_configuration_until_fresh_secrets_bring_another(
    tmp_path: Path, store: Store
) -> None:
    other = {"agent_name": "Bea"}
    Start(tmp_path, store, version=3, runtime=GOOD).configuration.adopt(3, other)

    with_the_same_secrets = Start(tmp_path, store, version=3, runtime=GOOD)
    with_fresh_ones = Start(tmp_path, store, version=3, runtime=GOOD, key_id="of-another-key")
    with_those_again = Start(tmp_path, store, version=3, runtime=other, key_id="of-another-key")

    assert with_the_same_secrets.settings == other
    assert with_fresh_ones.settings == with_those_again.settings == GOOD
