"""docs/adding-a-projection.md, followed to the letter: its two files are all that a projection needs."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Generator
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import pytest

import projections
from projections.follower import Follower
from projections.rebuild import rebuild
from tests.rebuilding import QUIET, dry_run_here, fold_here, rebuild_here, write_instances
from tests.store_commands import open_store

DOC = (Path(__file__).parents[2] / "docs" / "adding-a-projection.md").read_text()


@pytest.fixture
def enrolments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Any]:
    """The page's module, in a folder that the package finds as if it were its own."""
    for name, language in (("enrolments.sql", "sql"), ("enrolments.py", "python")):
        assert f"`projections/{name}`" in DOC
        (block,) = re.findall(rf"```{language}\n(.*?)```", DOC, re.DOTALL)
        (tmp_path / name).write_text(block)
    installed = resources.files
    monkeypatch.setattr(
        resources, "files", lambda package: tmp_path if package == "projections" else installed(package)
    )
    spec = importlib.util.spec_from_file_location("projections.enrolments", tmp_path / "enrolments.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "projections.enrolments", module)
    monkeypatch.setattr(projections, "enrolments", module, raising=False)
    spec.loader.exec_module(module)
    yield module.Enrolments()


async def test_the_projection_of_the_guide_can_be_built_followed_and_rebuilt(
    enrolments: Any, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        follower = Follower(pool, enrolments)
        await follower.create_checkpoints()
        assert await follower.catch_up() == 0, "it waits for the first build"

        first = await rebuild_here(database_url, enrolments)
        await write_instances(store, count=4, start=4)
        assert await follower.catch_up() > 0

        assert (first.version_before, first.stopped_s is not None) == (None, True)
        count = await (await owner_conn.execute("SELECT sum(enrolments)::int FROM enrolments")).fetchone()
        assert count == (4,)
        assert (await dry_run_here(database_url, enrolments)).drifted == 0
        assert (await rebuild_here(database_url, enrolments)).generation == 2


async def test_a_first_build_that_was_broken_off_is_continued(enrolments: Any, database_url: str) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)

    async def fold_and_break_off(*build: Any) -> None:
        await fold_here(database_url)(*build)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        await rebuild(database_url, enrolments, folding=fold_and_break_off, callbacks=QUIET)

    report = await rebuild_here(database_url, enrolments)

    assert (report.resumed, report.generation, report.swapped) == (True, 1, True)
    assert (await dry_run_here(database_url, enrolments)).drifted == 0
