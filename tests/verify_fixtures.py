"""Fixtures for tests of `audit verify`, to be imported by name: a sealed log, and a forger who edits it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.sealed_log import Forger, Log, SealedLogs, run_audit

FORGE = "UPDATE event SET payload = replace(payload::text, 'first', 'forged')::json WHERE lane = 6 AND seq = {}"


@pytest.fixture
async def log(sealed_logs: SealedLogs, tmp_path: Path) -> AsyncGenerator[Log]:
    async with sealed_logs.copy(tmp_path) as made:
        yield made


@pytest.fixture
def forger(log: Log) -> Generator[Forger]:
    """A forger with the owner's rights."""
    with psycopg.connect(log.url, autocommit=True) as connection:
        yield Forger(connection)


def forge_consistently(forger: Forger) -> None:
    """Forge event 7, and recompute digests and links, so that all of the lane is consistent again."""
    forger.do(FORGE.format(7))
    forger.redo_event(7)
    forger.redo_command(7)
    forger.redo_links()


def verify_findings(log: Log, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit status and the findings."""
    result = run_audit(log, "verify", "--json", *words)
    return result.exit_code, json.loads(result.stdout)["findings"]
