"""Commands that work on the database."""

import os

import pytest
from click.testing import CliRunner

from hydracore.cli import main
from hydracore.embedded.ports import free_port
from hydracore.settings import variable_name
from tests.command import run_forked


def test_migrating_twice_applies_nothing_twice(database_url: str) -> None:
    result = CliRunner().invoke(main, ["db", "migrate"], env={"HYDRACORE_DATABASE_URL": database_url})

    assert (result.exit_code, result.stdout) == (0, "nothing to apply\n")


def test_an_api_key_is_printed_once(database_url: str) -> None:
    result = CliRunner().invoke(
        main, ["api-key", "create", "--tenant", "acme"], env={"HYDRACORE_DATABASE_URL": database_url}
    )

    assert result.exit_code == 0
    assert result.stdout.startswith("hck_")


@pytest.mark.parametrize("words", ["sweep", "audit show --tenant acme"])
def test_a_command_without_its_database_ends_at_once_with_one_line(words: str) -> None:
    settings = {
        "database_url": f"postgresql://nobody@127.0.0.1:{free_port()}/nothing",
        "redis_url": f"redis://127.0.0.1:{free_port()}/0",
        "master_key": "a" * 43,
        "public_url": "http://127.0.0.1:9",
    }
    environ = {**os.environ, **{variable_name(name): value for name, value in settings.items()}}

    done = run_forked(*words.split(), env=environ)

    assert (done.status, done.stdout) == (3, "")
    assert done.stderr.startswith("hydracore: connection failed: ")
    assert len(done.stderr.splitlines()) == 1
