"""What `hydracore up` cannot work with is named in one line, and no process stays behind."""

import json
import os
import shutil
import socket
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from hydracore.embedded.files import write_json
from hydracore.embedded.home import Home
from hydracore.embedded.ports import free_port
from hydracore.embedded.postgres import Postgres
from hydracore.embedded.temporary_home import temporary_home
from tests.up_program import home_fixture, processes_of, run_refused_up  # noqa: F401 - a fixture


async def test_a_taken_port_is_refused(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, complaint = await run_refused_up(home, port)

    assert status == 2
    assert complaint.startswith(f"hydracore: port {port} on 127.0.0.1 is already in use")
    assert complaint.endswith("choose another port with --port, or with PORT= of make\n")


async def test_a_start_is_refused_if_another_program_has_the_port_that_agents_use(
    home: Path,
) -> None:
    ports = Home(home).ports_file
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write_json(ports, {"agents": port})
        status, complaint = await run_refused_up(home, free_port())

    assert status == 2
    assert complaint.startswith(f"hydracore: port {port} on 127.0.0.1 is already in use")
    assert complaint.endswith("the agents of this home need this port\n")
    assert json.loads(ports.read_text()) == {"agents": port}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's data is kept outside the home")
async def test_a_copy_of_a_home_with_data_outside_it_does_not_start_beside_the_original(
    home: Path,
) -> None:
    home.parent.chmod(0o700)
    secrets = Home(home).secrets()
    # As the original home has it: the same id, from another directory.
    theirs = Postgres(
        base=home.with_name("original") / "postgres", data_id=secrets.home_id, password="", port=free_port()
    )
    try:
        with theirs.lock():
            status, complaint = await run_refused_up(home, free_port())
    finally:
        shutil.rmtree(theirs.base, ignore_errors=True)

    assert status == 2
    assert complaint == f"hydracore: {theirs.base} is in use by another `hydracore up` (pid {os.getpid()})\n"
    assert not list((home / "logs").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's data is kept outside the home")
def test_data_outside_a_home_that_is_in_use_is_not_deleted_with_a_copy_of_the_home() -> None:
    with ExitStack() as until_deleted:
        home = until_deleted.enter_context(temporary_home("hydracore-test-"))
        home.path.parent.chmod(0o700)
        base = home.path.with_name("original") / "postgres"
        theirs = Postgres(base=base, data_id=home.secrets().home_id, password="", port=free_port())
        try:
            with theirs.lock():
                until_deleted.close()
                assert (home.path.exists(), theirs.base.exists()) == (False, True)
        finally:
            shutil.rmtree(theirs.base, ignore_errors=True)


async def test_an_external_redis_that_does_not_answer_is_named(home: Path, database_url: str) -> None:
    nowhere = f"127.0.0.1:{free_port()}/0"
    stores = {"HYDRACORE_DATABASE_URL": database_url, "HYDRACORE_REDIS_URL": f"redis://:secret@{nowhere}"}
    status, complaint = await run_refused_up(home, free_port(), **stores)

    assert status == 3
    assert complaint.startswith("hydracore: no Valkey or Redis answers at HYDRACORE_REDIS_URL")
    assert "secret" not in complaint
    assert not processes_of(home)


async def test_external_stores_that_do_not_answer_are_named_together(home: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}/0"
    stores = {
        "HYDRACORE_DATABASE_URL": f"postgresql://owner:secret@{nowhere}",
        "HYDRACORE_REDIS_URL": f"redis://:secret@{nowhere}",
    }
    status, complaint = await run_refused_up(home, free_port(), **stores)

    first, second = complaint.splitlines()
    assert status == 3
    assert first.startswith("hydracore: the database cannot be used: ")
    assert second.startswith("hydracore: no Valkey or Redis answers at HYDRACORE_REDIS_URL")
    assert "secret" not in complaint


async def test_a_start_that_fails_does_not_change_the_database(home: Path, empty_url: str) -> None:
    stores = {
        "HYDRACORE_DATABASE_URL": empty_url,
        "HYDRACORE_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
    }
    _, complaint = await run_refused_up(home, free_port(), **stores)

    assert [line.partition(" at ")[0] for line in complaint.splitlines()] == ["hydracore: no Valkey or Redis answers"]
    with psycopg.connect(empty_url) as connection:
        assert connection.execute("SELECT to_regclass('migration')").fetchone() == (None,)


async def test_a_role_that_the_database_does_not_have_is_named(home: Path, database_url: str, redis_url: str) -> None:
    stores = {"HYDRACORE_DATABASE_URL": database_url, "HYDRACORE_REDIS_URL": redis_url}
    status, complaint = await run_refused_up(home, free_port(), HYDRACORE_DATABASE_ROLE="nobody_knows", **stores)

    assert status == 3
    assert complaint.startswith("hydracore: the database cannot be used: ")
    assert (len(complaint.splitlines()), "nobody_knows" in complaint) == (1, True)


async def test_an_invalid_catalogue_is_refused_before_anything_is_started(home: Path, tmp_path: Path) -> None:
    (tmp_path / "catalogue.toml").write_text("regions")
    status, complaint = await run_refused_up(home, free_port(), HYDRACORE_CATALOGUE=str(tmp_path / "catalogue.toml"))

    assert status == 2
    assert complaint.startswith(f"hydracore: {tmp_path / 'catalogue.toml'}: ")
    assert len(complaint.splitlines()) == 1
    assert not list((home / "logs").iterdir())
